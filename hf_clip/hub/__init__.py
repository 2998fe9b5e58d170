"""Models on the Hub: cards whose numbers were measured and whose snippets were run, and uploads that go on."""

from .cards import CardFacts, adapt_card, check_model_card, write_model_card
from .licenses import card_license
from .origin import made_with
from .results import eval_results
from .updates import put_results
from .upload import PushError, redact, refuse_secrets, upload

__all__ = [
    "CardFacts",
    "PushError",
    "adapt_card",
    "card_license",
    "check_model_card",
    "eval_results",
    "made_with",
    "put_results",
    "redact",
    "refuse_secrets",
    "upload",
    "write_model_card",
]
