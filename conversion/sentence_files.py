"""What sentence-transformers 6 reads beside a model, so that `SentenceTransformer(folder)` gives unit embeddings.

    SentenceTransformer(folder).encode(["a cat"])
    SentenceTransformer(folder).encode([Image.open("cat.jpg")])

Without these files it finds the two methods by itself, and gives embeddings of any length.
"""

import json
from pathlib import Path

_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.base.modules.normalize.Normalize"},
]
_TRANSFORMER = {
    "transformer_task": "feature-extraction",
    "modality_config": {
        "text": {"method": "get_text_features", "method_output_name": "pooler_output"},
        "image": {"method": "get_image_features", "method_output_name": "pooler_output"},
    },
    "module_output_name": "sentence_embedding",
}


def write_sentence_files(folder: Path) -> None:
    """Writes `modules.json` and `sentence_bert_config.json` into a folder of a saved model."""
    for name, content in (("modules.json", _MODULES), ("sentence_bert_config.json", _TRANSFORMER)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
