"""`Index`: embeddings of one's images, kept beside them and in step with them, and questions to them."""

# Shapes: N images, D width of the shared space, P probes.

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import approximate
from .calibration import LOOKED_AT, Calibration, bank_prompts, calibrate, read_calibration, read_tensors, to_bytes
from .conditions import check_condition
from .errors import SearchError, writing
from .hub_output import hub_name
from .items import FolderItems, Items, TableItems
from .models import LazyModel
from .photos import decode_photo, decoders
from .queries import Hits, Term, compose, diversify, find, to_hits, unit, usable
from .store import EMBEDDING, FOLDER, IS_FOUND, ModelEntry, Store, as_matrix
from .updating import Update, Updater

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from hf_clip.model.typing_hf_clip import Processor

    from .ray_nodes import Shards

logger = logging.getLogger(__name__)


class Index:
    """Embeddings of the images of a folder, in a LanceDB database beside them.

        index = Index.open("photos/", model="openai/clip-vit-base-patch32")
        index.update()                                   # makes it, and later brings it up to date
        for hit in index.search("two dogs on a beach", top_k=20):
            print(hit.path, hit.score)

    Made by `Index.open`. One process updates an index at a time; any number ask it meanwhile.
    """

    def __init__(
        self, root: str | Path, place: str, model: LazyModel | None, device: "torch.device | str | None" = None
    ):
        self.root, self.place, self._device = root, place, device
        self._asked_for = model
        self._names: list[str] | None = None
        self._store = Store(place)
        # Ray's address, and the actors that search there.
        self._ray: str | None = None
        self._shards: Shards | None = None
        self._checked: str | None = None
        # The version of the models' table, the one that is asked, and its calibration: megabytes, read once.
        self._known: tuple[int, ModelEntry, Calibration | None] | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        root: str | Path,
        *,
        model: Any = None,
        processor: "Processor | None" = None,
        index: str | Path | None = None,
        names: Sequence[str] | None = None,
        device: "torch.device | str | None" = None,
        ray: str | None = None,
        **load_options: Any,
    ) -> "Index":
        """The index of a folder, or of a table of images; nothing is made before `update`.

        Args:
            root: a folder of images, or what `hf_clip.open_source` opens as one file or data set: its rows are named
                FILE#ROW.
            model: what `hf_clip.load` takes, or a dual encoder. By default the one that the index was made with. With
                another one, the next `update` builds its embeddings beside those that there are.
            processor: of a dual encoder that is given.
            index: where the index lies, if not in `root` as `.hf-clip.lance`; a folder, or an address that LanceDB
                takes (s3://...).
            names: texts that name what such images show, a catalog's or a species list: the match probability of a
                question is surer with them. The next `update` keeps them; by default those that it kept before.
            device: where the model encodes; None is the CPU.
            ray: an address of Ray (auto, HOST:PORT, local): its nodes compare all rows, each a part of them, with the
                answers of one process. They must reach `index`.
            load_options: more arguments of `hf_clip.load`, such as `architecture`.
        """
        place = str(index) if index is not None else _place_of(root)
        lazy = None if model is None else LazyModel(model, processor, load_options, device)
        made = cls(root, place, lazy, device)
        made._ray = ray
        made._names = None if names is None else list(dict.fromkeys(names))
        return made

    # Which model.

    def _entry(self) -> ModelEntry:
        """The model that questions go to. Raises SearchError if there is none."""
        version = self._store.version()
        if self._known is not None and self._known[0] == version:
            return self._known[1]
        if "://" not in self.place and not Path(self.place).is_dir():
            raise SearchError(f"{self._missing()} holds no index: run `update` first.")
        entries = self._store.entries()
        wanted = self._asked_for
        if wanted is not None:
            entries = [one for one in entries if one.source == wanted.source]
            if wanted.is_given and entries:
                key = wanted.key()
                entries = [one for one in entries if one.id == key]
        if not entries:
            name = "" if wanted is None else f" for the model {wanted.source}"
            raise SearchError(f"{self.place} holds no index{name}: run `update` first.")
        self._known = version, entries[0], read_calibration(entries[0])
        return entries[0]

    def _missing(self) -> str:
        """The place where no index is; a root that is not there either is what was misspelt."""
        is_here = self.place != _place_of(self.root) or Path(self.root).exists()
        return self.place if is_here else f"{self.root} is no folder or file here, and"

    def _calibration(self, entry: ModelEntry) -> Calibration | None:
        return self._known[2] if self._known is not None and self._known[1] is entry else read_calibration(entry)

    def _model(self, entry: ModelEntry) -> LazyModel:
        if self._asked_for is None:
            self._asked_for = LazyModel(entry.source, None, entry.options, self._device)
        return self._asked_for

    def warm(self, around: Callable[[LazyModel], LazyModel] | None = None) -> LazyModel:
        """Loads the model that questions go to, checks that it is the index's, and returns it.

        Args:
            around: gives what encodes in its place from now on: a server forms batches across its requests.
        """
        entry = self._entry()
        self._check_model(entry)
        model = self._model(entry)
        if around is not None:
            self._asked_for = model = around(model)
        return model

    def _text_embeds(self, entry: ModelEntry, texts: Sequence[str]) -> np.ndarray:
        self._check_model(entry)
        return self._model(entry).embed_texts(list(texts))

    def _check_model(self, entry: ModelEntry) -> None:
        """Raises SearchError if the model gives other embeddings than when the index was made; once a program."""
        with self._lock:
            if self._checked == entry.id:
                return
            import torch

            from hf_clip.model.state_key_hf_clip import check_probe

            model, processor = self._model(entry).load()
            tensors = read_tensors(entry.tensors)
            if "text_probe" in tensors:
                try:
                    check_probe(torch.from_numpy(tensors["text_probe"]), model, processor, "text", self.place)
                except ValueError as error:
                    raise SearchError(
                        f"{entry.source} gives other embeddings than when {self.place} was made: run `update`, "
                        "or name the `model` that it was made with."
                    ) from error
            self._checked = entry.id

    # Update.

    def update(self, *, prune: bool = False, show_progress: bool | None = None) -> Update:
        """Brings the index in step with the images: makes it, where there is none.

        Files are compared by size and time, then by the hash of their content; only content that the index does not
        know is encoded. Whatever stops it costs at most 256 encoded images, and the next call goes on.

        Args:
            prune: forget the images whose file is gone. By default they are kept, unseen by questions, for the day
                that the disk is mounted again.
            show_progress: images a second and the time left on standard error; by default where that is a terminal.

        Raises:
            SearchError: there is no model; the folder cannot be read; the index cannot be written to, or another
                process is writing to it.
        """
        begun = time.monotonic()
        items = self._items()
        if self._asked_for is None and not ("://" in self.place or Path(self.place).is_dir()):
            raise SearchError(f"{self._missing()} holds no index yet: name a `model` to make one with.")
        report = Update()
        with self._store.locked(), writing(self.place):
            entry = self._entry_to_update()
            tools = decoders()
            updater = Updater(self._store, entry, self._model(entry), report, show_progress)
            data = items.fingerprint()
            if not (data and entry.is_whole and entry.facts.get("data") == data and entry.decoders == tools):
                updater.run(items, prune, retry_errors=entry.is_whole and entry.decoders != tools)
            self._take_names(entry)
            self._finish(entry, report, tools, data)
        report.seconds = time.monotonic() - begun
        return report

    def _items(self) -> Items:
        root = Path(self.root)
        if root.is_dir():
            return FolderItems(root, None if self._store.is_remote else Path(self.place))
        if not root.exists() and not _may_be_hub_id(str(self.root)):
            raise SearchError(f"there is no folder or file {str(self.root)!r}: is it mounted? Nothing was forgotten.")
        return TableItems(str(self.root))

    def _entry_to_update(self) -> ModelEntry:
        """The entry of the wanted model, made if need be."""
        entries = self._store.entries()
        if self._asked_for is None:
            if not entries:
                raise SearchError(f"{self.place} holds no index yet: name a `model` to make one with.")
            self._asked_for = LazyModel(entries[0].source, None, entries[0].options, self._device)
        model = self._asked_for
        fingerprint = "" if model.is_given else model.fingerprint()
        for entry in entries:
            same = entry.source == model.source and entry.options == model.options
            if same and fingerprint and entry.fingerprint == fingerprint:
                return entry
        key = model.key()
        for entry in entries:
            if entry.id == key:
                # The same weights at another place, or in files written again.
                entry.source, entry.fingerprint, entry.options = model.source, fingerprint, model.options
                return entry
        entry = self._new_entry(model, key, fingerprint)
        # The first one is asked while it is made, what there is of it.
        entry.is_current = not entries
        self._store.put(entry)
        return entry

    def _new_entry(self, model: LazyModel, key: str, fingerprint: str) -> ModelEntry:
        from hf_clip.model.state_key_hf_clip import probe_embeds

        loaded = model.load()
        bank = model.embed_texts(list(bank_prompts()))
        probes = {"text_probe": probe_embeds(*loaded, "text").numpy(), "image_probe": probe_embeds(*loaded, "image")}
        probes["image_probe"] = np.asarray(probes["image_probe"])
        width = bank.shape[1]
        empty, none = np.zeros(0, np.float32), np.zeros((0, width), np.float32)
        nothing = np.zeros(width, np.float32), np.zeros((width, width), np.float32), np.zeros(1, np.float32)
        made = Calibration(bank, none, bank.mean(0), *nothing, empty)
        return ModelEntry(
            id=key,
            source=model.source,
            options=model.options,
            fingerprint=fingerprint,
            width=width,
            tensors=made.to_bytes(**probes),
        )

    def _take_names(self, entry: ModelEntry) -> None:
        """Puts names that were given in place of those that were kept; what depends on them is measured again."""
        if self._names is None or self._names == entry.facts.get("names", []):
            return
        tensors = read_tensors(entry.tensors)
        width = np.zeros((0, entry.width), np.float32)
        tensors["names"] = self._model(entry).embed_texts(self._names) if self._names else width
        entry.tensors = to_bytes(tensors)
        entry.facts |= {"names": self._names, "measured_rows": 0}
        entry.is_whole = False

    def _finish(self, entry: ModelEntry, report: Update, tools: str, data: str) -> None:
        """Measures again what depends on the rows, and switches to a model that is whole now."""
        counted = self._store.read(
            entry, lambda table: (table.count_rows(IS_FOUND), table.count_rows("error IS NOT NULL"))
        )
        report.total, report.unreadable = counted
        if report.is_root_empty:
            return
        changes = report.writes or report.missing != entry.facts.get("missing", 0) or not entry.is_whole
        if changes or entry.decoders != tools or entry.facts.get("data", "") != data:
            self._measure(entry, report)
            entry.facts |= {"data": data, "missing": report.missing, "rows": report.total}
            entry.decoders, entry.is_whole = tools, True
            others = [one for one in self._store.entries() if one.is_current and one.id != entry.id]
            entry.is_current = True
            for one in others:
                one.is_current = False
            self._store.put(entry, *others)

    def _measure(self, entry: ModelEntry, report: Update) -> None:
        known = entry.facts.get("measured_rows", 0)
        drift = entry.facts.get("drift", 0) + report.added + report.changed + report.pruned + report.returned
        # Of many rows a few more change no mean.
        if known and drift * 50 < known and not approximate.is_wanted(entry, report.total):
            entry.facts["drift"] = drift
            return
        tensors = read_tensors(entry.tensors)
        made, best = calibrate(self._store, entry, tensors["bank"], tensors.get("names"))
        probes = {name: tensors[name] for name in ("text_probe", "image_probe")}
        entry.tensors = made.to_bytes(**probes)
        entry.facts |= {"measured_rows": report.total, "drift": 0}
        if approximate.is_wanted(entry, report.total):
            approximate.build(self._store, entry)
        if report.total <= approximate.EXACT_ROWS:
            entry.facts.pop("approximate", None)
        else:
            entry.facts["approximate"] = approximate.measure(self._store, entry, made, best, report.total)

    # Questions.

    def search(
        self,
        query: str | Sequence[str] = (),
        *,
        images: Any = (),
        near: str | Sequence[str] = (),
        minus: str | Sequence[str] = (),
        weights: Sequence[float] | None = None,
        where: str | None = None,
        top_k: int = 20,
    ) -> Hits:
        """The images that are most like what is asked for: one text, image or indexed image, or a mixture of several.

            index.search("two dogs on a beach", where="taken > '2024-01-01'")
            index.search("at night", images="street.jpg", minus="people")

        Args:
            query: texts.
            images: images of any kind that `decode_image` takes, one or several.
            near: paths of indexed images.
            minus: texts of what is not wanted.
            weights: of `query`, `images`, `near` and `minus`, in this order; by default 1 each.
            where: a condition in SQL on path, size, mtime, width, height, taken. It is exact.
            top_k: how many at most.

        Raises:
            SearchError: there is no index; nothing is asked for; `where` cannot be understood; a path of `near` is not
                in the index; the model is another one than that of the index.
            ImageDecodeError: an image cannot be decoded.
        """
        entry = self._entry()
        terms = self._terms(entry, query, images, near, minus, weights)
        calibration = self._calibration(entry)
        direction = compose(terms, calibration)
        is_one_text = len(terms) == 1 and terms[0].is_text and terms[0].weight > 0
        is_judged = is_one_text and calibration is not None and len(calibration.bank_evidence) > 0
        wanted = max(top_k, LOOKED_AT) if is_judged else top_k
        rows, embeddings, exact = self._find(entry, direction, wanted, where, with_embeddings=is_judged)
        rows = rows[:top_k]
        hits = Hits(is_exact=exact)
        if is_judged and calibration is not None and embeddings is not None:
            hits.match_probability = calibration.match_probability(direction, embeddings[:LOOKED_AT])
        hits.hits = to_hits(_shifted(rows, terms, direction, calibration))
        return hits

    def near(self, image: Any, *, where: str | None = None, top_k: int = 20) -> Hits:
        """The images most like one: an indexed one by its path, which is not among them, or any other image."""
        if isinstance(image, str) and self._embeddings_of(self._entry(), [image]):
            found = self.search(near=image, where=where, top_k=top_k + 1)
            found.hits = [hit for hit in found.hits if hit.path != image][:top_k]
            return found
        return self.search(images=image, where=where, top_k=top_k)

    def recommend(
        self,
        liked: Sequence[str],
        disliked: Sequence[str] = (),
        *,
        diversity: float = 0.3,
        where: str | None = None,
        top_k: int = 20,
    ) -> Hits:
        """Images like the liked ones and unlike the disliked: similarity of what they show, no model of behavior.

        The question is the mean of the liked embeddings, centered, less half of the mean of the disliked; those named
        are not among the answers, and the answers differ from one another by maximal marginal relevance.

        Args:
            liked, disliked: paths of indexed images.
            diversity: 0 gives the most alike, 1 those that differ most.
        """
        if not 0 <= diversity <= 1:
            raise ValueError(f"`diversity={diversity}` is not a number from 0 to 1.")
        entry = self._entry()
        known = self._require(entry, [*liked, *disliked])
        if not liked:
            raise SearchError("`liked` is empty: name at least one indexed image.")
        terms = [
            Term(unit(np.mean([known[path] for path in paths], 0)), False, weight)
            for paths, weight in ((liked, 1.0), (disliked, -0.5))
            if paths
        ]
        calibration = self._calibration(entry)
        direction = compose(terms, calibration)
        wanted = max(10 * top_k, 100) + len(known)
        rows, embeddings, exact = self._find(entry, direction, wanted, where, with_embeddings=True)
        kept = [at for at, row in enumerate(rows) if row["path"] not in known]
        if not kept or embeddings is None:
            return Hits(is_exact=exact)
        rows, embeddings = [rows[at] for at in kept], embeddings[kept]
        chosen = diversify(rows, embeddings, top_k, diversity)
        return Hits(to_hits(_shifted([rows[at] for at in chosen], terms, direction, calibration)), is_exact=exact)

    def _find(
        self, entry: ModelEntry, direction: np.ndarray, top_k: int, where: str | None, with_embeddings: bool = False
    ) -> tuple[list[dict[str, Any]], np.ndarray | None, bool]:
        """Asks the table, here or where Ray's actors are."""
        if where:
            check_condition(where)
        asked: dict[str, Any] = {"where": where, "with_embeddings": with_embeddings}
        if self._ray is None:
            return find(self._store, entry, direction, top_k, **asked)
        if self._shards is None:
            from .ray_nodes import Shards

            place = self.place if self._store.is_remote else str(Path(self.place).absolute())
            self._shards = Shards(place, self._ray)
        return self._shards.find(entry, direction, top_k, **asked)

    def _terms(self, entry, query, images, near, minus, weights) -> list[Term]:
        texts, unwanted, paths = _listed(query), _listed(minus), _listed(near)
        pictures = list(images) if isinstance(images, list | tuple) else [images]
        embeddings: list[tuple[np.ndarray, bool]] = []
        if texts:
            embeddings += [(one, True) for one in self._text_embeds(entry, texts)]
        if pictures:
            self._check_model(entry)
            embeddings += [(one, False) for one in self._model(entry).embed_images(pictures)]
        known = self._require(entry, paths)
        embeddings += [(known[path], False) for path in paths]
        if not embeddings:
            raise SearchError("nothing is asked for: give a text, an image, or the path of an indexed image.")
        if unwanted:
            embeddings += [(one, True) for one in self._text_embeds(entry, unwanted)]
        given = [1.0] * len(embeddings) if weights is None else list(weights)
        if len(given) != len(embeddings):
            raise ValueError(f"`weights` has {len(given)} numbers for {len(embeddings)} parts of a question.")
        signs = [1.0] * (len(embeddings) - len(unwanted)) + [-1.0] * len(unwanted)
        return [
            Term(one, is_text, sign * weight)
            for (one, is_text), sign, weight in zip(embeddings, signs, given, strict=True)
        ]

    def _embeddings_of(self, entry: ModelEntry, paths: Sequence[str]) -> dict[str, np.ndarray]:
        found = self._store.rows_with(entry, "path", list(dict.fromkeys(paths)), ["path", "error", EMBEDDING])
        whole = found.filter(found["error"].is_null())
        if not whole.num_rows:
            return {}
        vectors = as_matrix(whole[EMBEDDING])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return dict(zip(whole["path"].to_pylist(), vectors, strict=True))

    def _require(self, entry: ModelEntry, paths: Sequence[str]) -> dict[str, np.ndarray]:
        known = self._embeddings_of(entry, paths) if paths else {}
        lacking = [path for path in paths if path not in known]
        if lacking:
            raise SearchError(f"{lacking[0]!r} is no image of the index: paths are relative to {self.root}.")
        return known

    # What there is.

    def status(self) -> dict[str, Any]:
        """What the index holds: for each model its rows, its files without an image, and how questions are asked."""
        models = []
        for entry in self._store.entries():
            counts = self._store.read(
                entry,
                lambda table: {
                    "rows": table.count_rows(IS_FOUND),
                    "unreadable": table.count_rows("error IS NOT NULL"),
                    "missing": table.count_rows("missing"),
                },
            )
            facts = usable(entry)
            models.append(
                {
                    "model": entry.source,
                    "id": entry.id,
                    "is_current": entry.is_current,
                    "is_whole": entry.is_whole,
                    "width": entry.width,
                    **counts,
                    "search": {"kind": "exact"} if facts is None else {"kind": "IVF_RQ", **facts},
                }
            )
        return {"root": str(self.root), "index": self.place, "models": models}

    def errors(self) -> dict[str, str]:
        """Why files of the index give no image, by path."""
        content = self._store.columns(self._entry(), ["path", "error"], "error IS NOT NULL")
        return dict(zip(content["path"].to_pylist(), content["error"].to_pylist(), strict=True))

    def __len__(self) -> int:
        return self._store.read(self._entry(), lambda table: table.count_rows(IS_FOUND))

    def file_of(self, path: str) -> Path:
        """The file of a hit's path, in an indexed folder."""
        return Path(self.root) / path

    def path_of(self, row: int) -> str | None:
        """The path of a hit's `row`; None for one that is not there, or was written again since."""
        return self._store.path_of(self._entry(), row)

    def image(self, path: str, *, least_edge: int | None = None) -> "Image.Image":
        """The decoded image of a hit's path, from the folder or from its row of a table.

        Args:
            least_edge: as for `decode_image`: a JPEG may be decoded smaller, and faster.

        Raises:
            ImageDecodeError: it cannot be read any more.
        """
        if Path(self.root).is_dir():
            return decode_photo(str(self.file_of(path)), least_edge)
        return decode_photo(TableItems(str(self.root)).content(path), least_edge)

    def export(self, output: str | Path) -> int:
        """Writes paths, metadata and unit embeddings of the current model for other systems.

        Args:
            output: a file *.parquet, or *.faiss (an exact index, beside which FILE.paths names the images), or a data
                set of the Hub, hf://datasets/OWNER/NAME, which is made, private, where there is none.

        Returns:
            How many rows it has.
        """
        from . import exporting

        name = hub_name(output)
        if name is not None:
            return exporting.to_hub(self._store, self._entry(), name)
        file, entry = Path(output), self._entry()
        writers = {".parquet": exporting.to_parquet, ".faiss": exporting.to_faiss}
        if file.suffix not in writers:
            raise SearchError(
                f"`output={file}` is neither *.parquet nor *.faiss nor hf://datasets/OWNER/NAME: name one of these."
            )
        return writers[file.suffix](self._store, entry, file)

    def to_qdrant(self, client: Any, collection: str) -> int:
        """Writes the current model's rows as a collection of a `qdrant_client.QdrantClient`, in place of one there."""
        from .exporting import to_qdrant

        return to_qdrant(self._store, self._entry(), client, collection)

    def to_dataset(self) -> Any:
        """The rows as a `datasets.Dataset` without images: `index.to_dataset().push_to_hub("me/embeddings")`."""
        from .exporting import to_dataset

        return to_dataset(self._store, self._entry())

    def drop(self, model: str) -> None:
        """Forgets a model of the index, by its source or id, and its embeddings."""
        with self._store.locked(), writing(self.place):
            entries = self._store.entries()
            named = [one for one in entries if one.id == model or one.source in (model, LazyModel(model).source)]
            if not named:
                known = ", ".join(one.source for one in entries)
                raise SearchError(f"{self.place} holds no model {model!r}: it has {known or 'none'}.")
            for one in named:
                self._store.remove(one)
            left = [one for one in entries if one not in named]
            if left and not any(one.is_current for one in left):
                left[0].is_current = True
                self._store.put(left[0])


def _shifted(
    rows: list[dict[str, Any]], terms: Sequence[Term], direction: np.ndarray, calibration: Calibration | None
) -> list[dict[str, Any]]:
    """The rows; where several terms were centered, with products of the centered images."""
    if len(terms) < 2 or calibration is None:
        return rows
    shift = float(direction @ calibration.image_mean)
    return [{**row, "score": row["score"] - shift} for row in rows]


def _place_of(root: str | Path) -> str:
    path = Path(root)
    if path.is_file():
        return str(path.with_name(f".{path.name}.hf-clip.lance"))
    if not path.exists() and _may_be_hub_id(str(root)):
        return str(Path(str(root).replace("/", "--") + FOLDER))
    return str(path / FOLDER)


def _may_be_hub_id(root: str) -> bool:
    from hf_clip.sources.files import is_hub_id

    return is_hub_id(root)


def _listed(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)
