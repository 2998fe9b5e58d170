"use strict";

// All that is shown is put there as text: names of files may hold anything.

const PAGE_SIZE = 60;
const MOST_BYTES = 22 * 2 ** 20;
const $ = (id) => document.getElementById(id);

// What the hits on the page answer: asked again for more of them.
let asked = null;
let image = null;
let subject = null;
let untitled = null;
let generation = 0;
let writing = 0;
// Of this run of the server: numbers of rows mean something in it alone, and browsers keep what they fetched.
let run = "";

const thumbOf = (row, size = 256) => `/thumb/${row}?size=${size}&run=${encodeURIComponent(run)}`;

function make(tag, options = {}, ...children) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
}

function tell(place, text, isBad = false) {
  place.textContent = text;
  place.classList.toggle("bad", isBad);
}

async function call(path, body) {
  let answer;
  try {
    const options = body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer.");
  }
  run = answer.headers.get("x-hf-clip-run") ?? run;
  if (answer.status === 401) location.replace("/login");
  const content = await answer.json().catch(() => null);
  if (!answer.ok) {
    const error = new Error(content?.error?.message ?? `The server answers ${answer.status}.`);
    throw Object.assign(error, { param: content?.error?.param });
  }
  return content;
}

function readFile(file) {
  return new Promise((done, failed) => {
    if (file.size > MOST_BYTES) {
      failed(new Error(`${file.name} is larger than ${MOST_BYTES / 2 ** 20} MB: scale it down.`));
      return;
    }
    const reader = new FileReader();
    reader.onload = () => done({ name: file.name, url: dataUrl(reader.result), shown: URL.createObjectURL(file) });
    reader.onerror = () => failed(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

// A file of no known kind has a data URL without one, and an empty file none at all.
function dataUrl(text) {
  return text === "data:" ? "data:application/octet-stream;base64," : text;
}

// Tabs.

function show(name) {
  for (const tab of document.querySelectorAll('[role="tab"]')) {
    const isShown = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", String(isShown));
    tab.tabIndex = isShown ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !isShown;
  }
}

function addTabs() {
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  for (const tab of tabs) {
    tab.addEventListener("click", () => show(tab.getAttribute("aria-controls")));
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
      const others = tabs.filter((one) => !one.hidden);
      const step = event.key === "ArrowRight" ? 1 : others.length - 1;
      const next = others[(others.indexOf(tab) + step) % others.length];
      show(next.getAttribute("aria-controls"));
      next.focus();
    });
  }
}

// An image to search with, or to classify: dropped, chosen or pasted.

function addDrop(zone, input, take, status) {
  const accept = async (file) => {
    if (!file) return;
    try {
      take(await readFile(file));
    } catch (error) {
      tell(status, error.message, true);
    }
  };
  for (const name of ["dragenter", "dragover"]) {
    zone.addEventListener(name, (event) => {
      event.preventDefault();
      zone.classList.add("over");
    });
  }
  for (const name of ["dragleave", "drop"]) {
    zone.addEventListener(name, (event) => {
      event.preventDefault();
      zone.classList.remove("over");
    });
  }
  zone.addEventListener("drop", (event) => accept(event.dataTransfer.files[0]));
  input.addEventListener("change", () => {
    const [file] = input.files;
    accept(file);
    input.value = "";
  });
}

function chooseImage(read) {
  if (image?.shown) URL.revokeObjectURL(image.shown);
  image = read;
  $("chosen").hidden = !read;
  $("drop").hidden = Boolean(read);
  if (!read) return;
  $("chosen-image").src = read.shown ?? thumbOf(read.row);
  $("chosen-name").textContent = read.name;
}

// Search.

const quoted = (text) => `'${text.replaceAll("'", "''")}'`;

function conditions() {
  const parts = [];
  if ($("from").value) parts.push(`taken >= ${quoted($("from").value)}`);
  // Of the whole day: "2024-05-01T..." comes after "2024-05-01", and before "2024-05-01U".
  if ($("to").value) parts.push(`taken < ${quoted(`${$("to").value}U`)}`);
  if ($("wide").value) parts.push(`width >= ${Math.round(Number($("wide").value))}`);
  if ($("path").value.trim()) parts.push(`strpos(lower(path), ${quoted($("path").value.trim().toLowerCase())}) > 0`);
  return parts.length ? parts.join(" AND ") : null;
}

function question() {
  const made = { top_k: PAGE_SIZE, offset: 0, order: $("order").value, where: conditions() };
  const query = $("query").value.trim();
  const minus = $("minus").value.split(",").map((text) => text.trim()).filter(Boolean);
  if (query) made.query = [query];
  if (minus.length) made.minus = minus;
  if (image?.path) made.near = [image.path];
  else if (image) made.images = [image.url];
  return made;
}

async function search() {
  const made = question();
  if (!made.query && !made.near && !made.images) {
    tell($("status"), "Say what the images show, or drop one that is like them.", true);
    $("query").focus();
    return;
  }
  asked = made;
  $("hits").replaceChildren();
  await fill();
}

async function fill() {
  const mine = ++generation;
  $("more").hidden = true;
  tell($("status"), "Searching …");
  try {
    const found = await call("/v1/search", asked);
    // An answer that came late is not wanted any more.
    if (mine !== generation) return;
    showHits(found);
  } catch (error) {
    if (mine !== generation) return;
    tell($("status"), error.message, true);
    // The next search is without what is no image.
    if (error.param === "images") chooseImage(null);
  }
}

function showHits(found) {
  const grid = $("hits");
  const first = grid.children.length;
  const hits = found.data.filter((hit) => !(asked.near && asked.near[0] === hit.path));
  // The best has the longest bar; what is not near anything has none.
  const best = first ? Number(grid.dataset.best) : Math.max(0, ...hits.map((hit) => hit.score));
  grid.dataset.best = String(best);
  grid.append(...hits.map((hit) => card(hit, best)));
  $("more").hidden = !found.has_more;
  tell($("status"), summary(grid.children.length, found));
  if (first) grid.children[first]?.querySelector("button").focus();
}

function summary(count, found) {
  if (!count) return asked.where ? "No image: try it without filters." : "No image.";
  const shown = `${count} image${count === 1 ? "" : "s"}${found.has_more ? ", and more" : ""}`;
  if (found.match_probability === null) return shown;
  const probability = `match probability ${found.match_probability.toFixed(2)}`;
  return found.has_match ? `${shown} · ${probability}` : `${shown} · low ${probability}: half of unrelated texts reach as much`;
}

function card(hit, best) {
  const name = hit.path.split("/").pop();
  const thumb = make("img", { src: thumbOf(hit.row), alt: name, loading: "lazy", decoding: "async" });
  thumb.addEventListener("error", () => thumb.replaceWith(make("span", { textContent: "gone" })));
  const open = make("button", { type: "button", className: "open", title: hit.path }, thumb);
  open.addEventListener("click", () => enlarge(hit));
  const like = make("button", { type: "button", className: "like", textContent: "More like this" });
  like.addEventListener("click", () => moreLike(hit));
  const bar = make("i");
  bar.style.width = `${best > 0 ? Math.max(0, Math.min(100, (100 * hit.score) / best)) : 0}%`;
  const facts = make(
    "div",
    { className: "facts" },
    make("span", { className: "score", textContent: hit.score.toFixed(3), title: "score" }),
    make("span", { textContent: hit.taken ? hit.taken.slice(0, 10) : hit.width ? `${hit.width} × ${hit.height}` : "" }),
  );
  const caption = make(
    "figcaption",
    {},
    make("div", { className: "name", textContent: name, title: hit.path }),
    facts,
    make("div", { className: "bar" }, bar),
  );
  return make("figure", { className: "card" }, open, caption, like);
}

function moreLike(hit) {
  $("large").close();
  $("query").value = "";
  $("minus").value = "";
  chooseImage({ name: hit.path.split("/").pop(), path: hit.path, row: hit.row });
  window.scrollTo({ top: 0 });
  search();
}

function enlarge(hit) {
  $("large-image").src = thumbOf(hit.row, 1024);
  $("large-image").alt = hit.path;
  $("large-name").textContent = hit.path;
  $("large-like").onclick = () => moreLike(hit);
  $("large").showModal();
}

// Arrow keys go from image to image.
function walk(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const current = event.target.closest?.(".card");
  if (!step || !current) return;
  const next = step > 0 ? current.nextElementSibling : current.previousElementSibling;
  next?.querySelector("button").focus();
  event.preventDefault();
}

// Classify.

function chooseSubject(read) {
  if (subject) URL.revokeObjectURL(subject.shown);
  subject = read;
  showChosen("subject", read);
}

function showChosen(name, read) {
  $(`${name}-image`).src = read.shown;
  $(`${name}-image`).hidden = false;
  $(`${name}-name`).textContent = read.name;
}

const lines = (text, separator) => text.split(separator).map((line) => line.trim()).filter(Boolean);

async function classify() {
  const status = $("classify-status");
  const labels = [...new Set(lines($("labels").value, /[\n,]/))];
  $("scores").replaceChildren();
  if (!subject || !labels.length) {
    tell(status, subject ? "Write some labels." : "Drop an image first.", true);
    return;
  }
  tell(status, "Looking …");
  const templates = lines($("templates").value, "\n");
  const reject = $("reject").value.trim();
  try {
    const found = await call("/v1/classify", {
      images: [subject.url],
      labels,
      ...(templates.length && { templates }),
      ...(reject && { reject }),
      top_k: 20,
    });
    $("scores").append(...found.data[0].labels.map(scoreLine));
    tell(status, `Templates: ${found.templates.slice(0, 3).join(" · ")}${found.templates.length > 3 ? " …" : ""}`);
  } catch (error) {
    tell(status, error.message, true);
  }
}

function scoreLine({ label, score }) {
  const bar = make("i");
  bar.style.width = `${100 * score}%`;
  const facts = make(
    "div",
    { className: "facts" },
    make("span", { textContent: label }),
    make("span", { textContent: `${(100 * score).toFixed(1)} %` }),
  );
  return make("li", {}, facts, make("div", { className: "bar" }, bar));
}

// Caption.

async function caption(read) {
  if (untitled) URL.revokeObjectURL(untitled.shown);
  untitled = read;
  showChosen("untitled", read);
  const mine = ++writing;
  $("written").textContent = "";
  tell($("caption-status"), "Writing …");
  try {
    const found = await call("/v1/caption", { images: [read.url] });
    if (mine !== writing) return;
    $("written").textContent = found.data[0].caption;
    tell($("caption-status"), found.data[0].caption ? "" : "It has no word for it.");
  } catch (error) {
    if (mine === writing) tell($("caption-status"), error.message, true);
  }
}

// Begin.

async function begin() {
  addTabs();
  addDrop($("drop"), $("image"), (read) => { chooseImage(read); search(); }, $("status"));
  addDrop($("subject-drop"), $("subject"), chooseSubject, $("classify-status"));
  addDrop($("untitled-drop"), $("untitled"), caption, $("caption-status"));
  $("describe").addEventListener("submit", (event) => event.preventDefault());
  $("question").addEventListener("submit", (event) => { event.preventDefault(); search(); });
  $("words").addEventListener("submit", (event) => { event.preventDefault(); classify(); });
  $("drop-it").addEventListener("click", () => { chooseImage(null); $("image").focus(); });
  $("order").addEventListener("change", () => asked && search());
  $("more").addEventListener("click", () => { asked = { ...asked, offset: asked.offset + PAGE_SIZE }; fill(); });
  $("hits").addEventListener("keydown", walk);
  $("large-close").addEventListener("click", () => $("large").close());
  const status = await call("/v1/status").catch((error) => { tell($("status"), error.message, true); return null; });
  if (!status) return;
  document.title = status.index ? `${status.index.name} · hf_clip` : "hf_clip";
  $("title").textContent = status.index ? status.index.name : "hf_clip";
  const count = status.index ? `${status.index.rows.toLocaleString("en")} images · ` : "";
  $("about").textContent = `${count}${status.model}`;
  $("tab-caption").hidden = !status.captions;
  if (status.index) {
    $("query").focus();
  } else {
    $("tab-search").hidden = true;
    show("classify");
  }
}

begin();
