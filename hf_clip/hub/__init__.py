"""Models on the Hub: cards whose numbers were measured and whose snippets were run, and uploads that go on."""

from .card_text import CardError
from .card_updates import put_results
from .data_license import card_license
from .model_card import CardFacts, adapt_card, check_model_card, write_model_card
from .package_version import made_with
from .result_tables import eval_results
from .snippets import SnippetError
from .upload import PushArgumentError, PushError, redact, upload

__all__ = [
    "CardError",
    "CardFacts",
    "PushArgumentError",
    "PushError",
    "SnippetError",
    "adapt_card",
    "card_license",
    "check_model_card",
    "eval_results",
    "made_with",
    "put_results",
    "redact",
    "upload",
    "write_model_card",
]
