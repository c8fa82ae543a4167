// The search page. It shows data from the dataset only through textContent and checked URLs.

const $ = (id) => document.getElementById(id);
const form = $("form"), text = $("text"), results = $("results"), details = $("details");
const FILTERS = ["min_score", "min_similarity", "min_width", "min_height", "license", "nsfw", "language", "crawl"];
const NUMBERS = new Set(FILTERS.slice(0, 4));
const SCORE = /^at_(least|most)_(.+)$/;  // the name of a head's slider
const EXAMPLES = ["a red apple", "a bicycle", "a slice of pizza", "a cat -dog", "a house in the snow"];
const LARGE_FILE = 1_500_000, LARGEST_SIDE = 1024;
const MOST_AT_ONCE = 200;   // the service's limit

let about = {};
let query = emptyQuery();   // the query that the results belong to
let found = [];             // the results shown
let nextOffset = null;
let turn = 0;               // number of the newest query; older answers are dropped
let shown = null;           // the result whose details are open
let entry = null;           // name of the place in the browser's history that the page shows
const left = new Map();     // such a name -> what it showed, for going back to it

function emptyQuery() {
  return { text: "", like: "", imageUrl: "", file: null, over: "image", safe: true, fold: true, filters: {} };
}

// The page's address holds the whole query except an uploaded image.

function queryOfAddress() {
  const at = new URLSearchParams(location.search);
  const filters = {};
  for (const [name, value] of at) {
    if (value && (FILTERS.includes(name) || SCORE.test(name) || name === "order_by")) filters[name] = value;
  }
  return {
    ...emptyQuery(),
    text: at.get("q") ?? "",
    like: at.get("like") ?? "",
    imageUrl: at.get("image_url") ?? "",
    over: at.get("over") === "text" ? "text" : "image",
    safe: at.get("safe") !== "0",
    fold: at.get("fold") !== "0",
    filters,
  };
}

function addressOf(asked) {
  const at = new URLSearchParams();
  if (asked.text) at.set("q", asked.text);
  if (asked.like) at.set("like", asked.like);
  if (asked.imageUrl) at.set("image_url", asked.imageUrl);
  if (asked.over !== "image") at.set("over", asked.over);
  if (!asked.safe) at.set("safe", "0");
  if (!asked.fold) at.set("fold", "0");
  for (const [name, value] of Object.entries(asked.filters)) at.set(name, value);
  const search = at.toString();
  return search ? `/?${search}` : "/";
}

const asksSomething = (asked) => Boolean(asked.text || asked.like || asked.imageUrl || asked.file);

// The form and the query

function fillForm(asked) {
  text.value = asked.text;
  form.elements.over.value = asked.over;
  $("safe").checked = asked.safe;
  $("fold").checked = asked.fold;
  for (const name of FILTERS) {
    const field = form.elements[name], value = asked.filters[name] ?? field.dataset.any ?? "";
    if (field.tagName === "SELECT" && value && ![...field.options].some((o) => o.value === value)) {
      field.append(new Option(value, value));
    }
    field.value = value;
    showBound(field);
  }
  showChip(asked);
  showFilterCount();
}

function queryOfForm() {
  const filters = {};
  for (const name of FILTERS) {
    const field = form.elements[name];
    if (isSet(field) && field.checkValidity()) filters[name] = field.value;
  }
  const asked = {
    ...query,
    text: text.value.trim(),
    over: form.elements.over.value,
    safe: $("safe").checked,
    fold: $("fold").checked,
    filters,
  };
  if (/^https?:\/\/\S+$/i.test(asked.text)) {
    return { ...asked, text: "", imageUrl: asked.text, like: "", file: null };
  }
  return asked;
}

function showChip(asked) {
  const image = $("chip-image");
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.removeAttribute("src");
  image.hidden = false;
  if (asked.file) {
    image.src = URL.createObjectURL(asked.file);
    $("chip-text").textContent = "Your image";
  } else if (asked.like) {
    image.src = thumbnailOf(asked.like);
    $("chip-text").textContent = "More like this";
  } else if (asked.imageUrl) {
    image.hidden = true;  // this page loads nothing from other sites
    $("chip-text").textContent = `Image at ${hostOf(asked.imageUrl)}`;
  }
  $("chip").hidden = !(asked.file || asked.like || asked.imageUrl);
  text.placeholder = $("chip").hidden ? "Describe an image, or paste one" : "Add words (optional)";
}

// A slider at its open end bounds nothing.

const isSet = (field) => field.value !== (field.dataset.any ?? "");

function showBound(field) {
  const shown = field.parentElement.querySelector(".bound");
  if (shown) shown.textContent = isSet(field) ? field.value : "any";
}

function offerHeads(heads) {
  const reset = $("reset-filters");
  for (const head of heads) {
    const high = head.keep === "high", name = `at_${high ? "least" : "most"}_${head.name}`;
    const range = element("input", { type: "range", name, min: head.low, max: head.high, step: (head.high - head.low) / 100 });
    range.dataset.any = range.value = high ? head.low : head.high;
    const title = head.name.replaceAll("_", " ");
    reset.before(element("label", { title: head.about },
      element("span", {}, `${title.charAt(0).toUpperCase()}${title.slice(1)} at ${high ? "least" : "most"} `, element("b", { className: "bound", textContent: "any" })), range));
    range.addEventListener("input", () => showBound(range));
    FILTERS.push(name);
    NUMBERS.add(name);
  }
  if (!heads.length) return;
  const order = element("select", { name: "order_by" }, new Option("Match", ""),
    ...heads.map((head) => new Option(`${head.keep === "high" ? "High" : "Low"} ${head.name.replaceAll("_", " ")}`, head.name)));
  reset.before(element("label", {}, "Sort by ", order));
  FILTERS.push("order_by");
  fillForm(query);
}

function showFilterCount() {
  const n = FILTERS.filter((name) => isSet(form.elements[name])).length;
  $("filter-count").textContent = n;
  $("filter-count").hidden = n === 0;
  for (const option of form.elements.nsfw.querySelectorAll("[data-unsafe]")) {
    option.disabled = $("safe").checked;
  }
}

// Requests

async function body(asked, offset, limit) {
  const sent = { over: asked.over, safe: asked.safe, fold: asked.fold, offset };
  if (limit) sent.limit = Math.min(limit, MOST_AT_ONCE);
  if (asked.text) sent.text = asked.text;
  if (asked.like) sent.like = asked.like;
  if (asked.imageUrl) sent.image_url = asked.imageUrl;
  if (asked.file) sent.image = await base64Of(await fitting(asked.file));
  for (const [name, value] of Object.entries(asked.filters)) {
    const [, bound, head] = SCORE.exec(name) ?? [];
    if (bound) (sent[bound === "least" ? "min_scores" : "max_scores"] ??= {})[head] = Number(value);
    else sent[name] = NUMBERS.has(name) ? Number(value) : value;
  }
  return sent;
}

async function post(path, value) {
  let response;
  try {
    response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(value),
    });
  } catch {
    throw new Error("The search service does not respond. Is it running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(messageOf(response.status, answer));
  return answer;
}

function messageOf(status, answer) {
  if (answer.reason === "encoder_down") {
    return "Text and image search is temporarily unavailable. “More like this” still works.";
  }
  const detail = answer.detail ?? `The search service responded with status ${status}.`;
  return detail.charAt(0).toUpperCase() + detail.slice(1) + (/[.!?]$/.test(detail) ? "" : ".");
}

function begin(asked) {
  query = asked;
  fillForm(asked);
  document.title = asked.text ? `${asked.text} – LAION Assets search` : "LAION Assets search";
  $("error").hidden = true;
  $("more").hidden = true;
  $("welcome").hidden = asksSomething(asked);
  return ++turn;
}

// `place` is how many results were shown before, and how far down the page was.

async function run(asked, { push = true, place = null } = {}) {
  if (push) {
    leave();
    enter(null);
    history.pushState({ entry }, "", addressOf(asked));
    scrollTo(0, 0);
  }
  const mine = begin(asked);
  if (!asksSomething(asked)) {
    showResults([], asked);
    $("status").textContent = "";
    return;
  }
  $("status").textContent = "Searching …";
  results.classList.add("busy");
  try {
    let answer = await post("/search", await body(asked, 0, place?.shown));
    if (mine !== turn) return;
    showResults(answer.results, asked);
    nextOffset = answer.next_offset;
    while (nextOffset !== null && found.length < place?.shown) {
      answer = await post("/search", await body(asked, nextOffset, place.shown - found.length));
      if (mine !== turn) return;
      append(answer);
    }
    offerChoices(answer);
    showStatus(answer);
    if (place) scrollTo(0, place.top);
  } catch (error) {
    if (mine !== turn) return;
    showResults([], asked);
    $("status").textContent = "";
    showError(error);
    if (asked.imageUrl && !asked.text) {
      // Put the URL back into the box, where it can be corrected or replaced.
      query = { ...asked, imageUrl: "" };
      showChip(query);
      text.value = asked.imageUrl;
    }
  } finally {
    if (mine === turn) results.classList.remove("busy");
  }
}

function append(answer) {
  found.push(...answer.results);
  results.append(...answer.results.map(cardOf));
  nextOffset = answer.next_offset;
}

async function loadMore() {
  const mine = turn;
  $("more").disabled = true;
  try {
    const answer = await post("/search", await body(query, nextOffset));
    if (mine !== turn) return;
    append(answer);
    offerChoices(answer);
    showStatus(answer);
  } catch (error) {
    if (mine === turn) showError(error);
  } finally {
    $("more").disabled = false;
    if (mine !== turn) watchEnd();
  }
}

// More results come when the end is near. After an error they come by the button alone.

const end = new IntersectionObserver(
  ([button]) => { if (button.isIntersecting && !$("more").disabled) loadMore(); },
  { rootMargin: "0px 0px 800px" });

function watchEnd() {
  end.unobserve($("more"));
  end.observe($("more"));  // it is reported anew, also where it still is in view
}

// Going back and forward shows what was there, at the same place.

history.scrollRestoration = "manual";

function enter(name) {
  entry = name ?? `${Date.now()}-${Math.random()}`;
}

function leave() {
  const settled = !results.classList.contains("busy") && $("error").hidden;
  if (settled) left.set(entry, { query, found, nextOffset, status: $("status").textContent, top: scrollY });
  else left.delete(entry);
}

function comeBack(page) {
  begin(page.query);
  results.classList.remove("busy");
  showResults(page.found, page.query);
  nextOffset = page.nextOffset;
  $("status").textContent = page.status;
  $("more").hidden = nextOffset === null;
  scrollTo(0, page.top);
  watchEnd();
}

// Of a page that was left altogether only the place is known; its results are asked for again.

addEventListener("pagehide", () => {
  try {
    sessionStorage.setItem(entry, JSON.stringify({ shown: found.length, top: scrollY }));
  } catch {
    // Where nothing may be stored, the page begins at its top.
  }
});

function placeLeft(name) {
  try {
    return JSON.parse(sessionStorage.getItem(name));
  } catch {
    return null;
  }
}

addEventListener("popstate", (event) => {
  leave();
  enter(event.state?.entry);
  const page = left.get(entry);
  if (page) comeBack(page);
  else run(queryOfAddress(), { push: false, place: placeLeft(entry) });
});

function showStatus(answer) {
  const n = found.length;
  const filtered = query.safe || query.fold || Object.keys(query.filters).length > 0;
  const depth = answer.exhaustive ? "the whole index" : `the ${count(answer.looked_at)} nearest`;
  const among = filtered ? ` among ${depth}` : "";
  const ms = Math.max(1, Math.round(answer.milliseconds));
  const time = ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`;
  $("status").textContent = n
    ? `${count(n)} ${n === 1 ? "result" : "results"}${among}, in ${time}`
    : `No results pass the filters${among}. ${query.safe ? "Safe mode is on. " : ""}Loosen the filters or try another query.`;
  $("more").hidden = nextOffset === null;
  $("download").hidden = n === 0;
  watchEnd();
}

function offerChoices(answer) {
  for (const [name, counts] of [["language", answer.languages], ["crawl", answer.crawls]]) {
    const field = form.elements[name];
    const known = new Set([...field.options].map((option) => option.value));
    for (const value of Object.keys(counts).sort()) {
      if (value && !known.has(value)) field.append(new Option(nameOf(name, value), value));
    }
  }
}

function nameOf(kind, value) {
  if (kind !== "language") return value;
  try {
    return `${new Intl.DisplayNames(["en"], { type: "language" }).of(value)} (${value})`;
  } catch {
    return value;
  }
}

function showError(error) {
  $("error").textContent = error.message;
  $("error").hidden = false;
}

// Results

function showResults(list, asked) {
  found = [...list];
  nextOffset = null;
  results.classList.toggle("texts", asked.over === "text");
  results.replaceChildren(...list.map(cardOf));
  $("download").hidden = list.length === 0;
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function cardOf(result) {
  const picture = element("button", { type: "button", className: "picture" });
  picture.setAttribute("aria-label", `Details: ${result.caption}`);
  picture.addEventListener("click", () => openDetails(result));
  picture.append(imageOf(result, picture));
  if (result.duplicates) {
    const n = result.duplicates;
    picture.append(element("span", { className: "badge", title: `${n} near-duplicates folded`, textContent: `+${n}` }));
  }
  const facts = element("p", { className: "facts" });
  facts.append(element("span", { className: "score", title: "Match with the query (cosine)", textContent: result.score.toFixed(2) }));
  if (result.NSFW !== "UNLIKELY") facts.append(element("span", { className: "tag", textContent: result.NSFW }));
  const license = licenseName(result.license);
  if (license) facts.append(link(result.license, license, "Licence stated by the page"));
  if (result.page_url) facts.append(link(result.page_url, hostOf(result.page_url), "Source page"));
  const like = element("button", { type: "button", className: "like", textContent: "More like this" });
  like.setAttribute("aria-label", `More like this: ${result.caption}`);
  like.addEventListener("click", () => moreLike(result));
  return element("li", { className: "card" },
    picture, element("p", { className: "caption", textContent: result.caption, title: result.caption }), facts, like);
}

function imageOf(result, holder) {
  const image = element("img", { alt: "", loading: "lazy", decoding: "async", width: 256, height: 256 });
  image.addEventListener("error", () => {
    holder.classList.add("lost");
    image.replaceWith(element("span", { textContent: "Not stored here" }));
  });
  image.src = thumbnailOf(result.sample);
  return image;
}

const thumbnailOf = (sample) => `/thumbnails/${encodeURIComponent(sample)}`;
const count = (n) => n.toLocaleString("en");

function webUrl(value) {
  try {
    const url = new URL(value);
    return url.protocol === "http:" || url.protocol === "https:" ? url : null;
  } catch {
    return null;
  }
}

const hostOf = (value) => webUrl(value)?.hostname.replace(/^www\./, "") ?? "an unknown site";

function link(target, label, title = "") {
  const url = webUrl(target);
  if (!url) return element("span", { textContent: label, title });
  return element("a", { href: url.href, textContent: label, title, target: "_blank", rel: "noopener noreferrer nofollow" });
}

function licenseName(value) {
  const url = webUrl(value);
  if (!url) return "";
  const [, kind, name, version] = url.pathname.split("/");
  if (kind === "publicdomain") return name === "zero" ? "CC0" : "Public domain";
  return kind === "licenses" && name ? `CC ${name.toUpperCase()} ${version ?? ""}`.trim() : "";
}

function moreLike(result) {
  if (details.open) details.close();
  text.focus({ preventScroll: true });
  run({ ...queryOfForm(), text: "", imageUrl: "", file: null, like: result.sample });
}

// Details and removal requests

function openDetails(result) {
  shown = result;
  $("details-caption").textContent = result.caption;
  const holder = document.querySelector(".details-image");
  holder.classList.remove("lost");
  holder.replaceChildren(imageOf(result, holder));
  const facts = [
    ["Match", result.score.toFixed(3)],
    ["Caption fits", result.image_text_similarity.toFixed(3)],
    ["Size", result.width ? `${result.width} × ${result.height}` : "unknown"],
    ["Licence", licenseName(result.license) ? link(result.license, licenseName(result.license)) : "unknown"],
    ["Safety tag", result.NSFW],
    ["Language", result.language ? nameOf("language", result.language) : "unknown"],
    ["Crawl", `${result.crawl}, segment ${result.segment}`],
    ["Source page", result.page_url ? link(result.page_url, result.page_url) : "unknown"],
    ["Image", link(result.url, result.url)],
  ];
  for (const [name, value] of Object.entries(result)) {
    if (name.startsWith("score_")) facts.splice(2, 0, [`Score: ${name.slice(6).replaceAll("_", " ")}`, value === null ? "unknown" : value.toFixed(2)]);
  }
  if (result.duplicates) facts.splice(2, 0, ["Near-duplicates", `${count(result.duplicates)} folded into this one`]);
  $("details-facts").replaceChildren(
    ...facts.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", {}, value)]));
  $("details-removal").hidden = !about.removal_requests;
  openRemoval(false);
  $("removal").reset();
  $("removal-status").textContent = "";
  details.showModal();
}

function openRemoval(open) {
  $("removal").hidden = !open;
  $("details-removal").setAttribute("aria-expanded", String(open));
}

async function sendRemoval(event) {
  event.preventDefault();
  const fields = $("removal").elements, button = $("removal").querySelector("button");
  button.disabled = true;
  try {
    await post("/removal-requests", { sample: shown.sample, reason: fields.reason.value, contact: fields.contact.value });
    openRemoval(false);
    $("removal-status").textContent = "Thank you. The request is in the queue for review.";
  } catch (error) {
    $("removal-status").textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

// Images given to the page

function searchByFile(file) {
  if (!["image/jpeg", "image/png", "image/webp"].includes(file.type)) {
    showError(new Error("Use a JPEG, PNG or WebP image."));
    return;
  }
  run({ ...queryOfForm(), file, like: "", imageUrl: "" });
}

async function fitting(file) {
  if (file.size <= LARGE_FILE) return file;
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    throw new Error("This image cannot be read.");
  }
  const scale = Math.min(1, LARGEST_SIDE / Math.max(picture.width, picture.height));
  const canvas = element("canvas", { width: Math.round(picture.width * scale), height: Math.round(picture.height * scale) });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

function base64Of(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("This image cannot be read."));
    reader.readAsDataURL(blob);
  });
}

const imageIn = (transfer) => [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/"));

function takeDropped(transfer) {
  const url = webUrl(transfer.getData("text/uri-list").split(/\r?\n/)[0]);
  const own = url?.origin === location.origin ? /^\/thumbnails\/([^/]+)$/.exec(url.pathname) : null;
  if (own) return moreLike({ sample: decodeURIComponent(own[1]) });
  const file = imageIn(transfer);
  if (file) return searchByFile(file);
  if (url) return run({ ...queryOfForm(), imageUrl: url.href, like: "", file: null });
  return showError(new Error("That is not an image. Use a JPEG, PNG or WebP."));
}

let dragging = 0;
const dragsSomething = (event) => event.dataTransfer?.types.some((type) => type === "Files" || type === "text/uri-list");
addEventListener("dragenter", (event) => {
  if (dragsSomething(event)) { dragging += 1; $("drop").hidden = false; event.preventDefault(); }
});
addEventListener("dragover", (event) => { if (dragsSomething(event)) event.preventDefault(); });
addEventListener("dragleave", () => { dragging = Math.max(0, dragging - 1); $("drop").hidden = dragging === 0; });
addEventListener("drop", (event) => {
  dragging = 0;
  $("drop").hidden = true;
  if (dragsSomething(event)) { event.preventDefault(); takeDropped(event.dataTransfer); }
});
addEventListener("paste", (event) => {
  const file = imageIn(event.clipboardData);
  if (file) { event.preventDefault(); searchByFile(file); }
});

// Wiring

form.addEventListener("submit", (event) => { event.preventDefault(); run(queryOfForm()); });
$("pick").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  if ($("file").files[0]) searchByFile($("file").files[0]);
  $("file").value = "";
});
$("chip-remove").addEventListener("click", () => {
  text.focus();
  run({ ...queryOfForm(), file: null, like: "", imageUrl: "" });
});
form.addEventListener("change", (event) => {
  if (event.target === text || event.target === $("file")) return;
  showFilterCount();
  if (event.target.checkValidity()) run(queryOfForm());
});
$("toggle-filters").addEventListener("click", () => {
  const open = $("filters").hidden;
  $("filters").hidden = !open;
  $("toggle-filters").setAttribute("aria-expanded", String(open));
});
$("reset-filters").addEventListener("click", () => {
  for (const name of FILTERS) form.elements[name].value = form.elements[name].dataset.any ?? "";
  run(queryOfForm());
});
$("more").addEventListener("click", async () => {
  const first = found.length;
  await loadMore();
  results.children[first]?.querySelector("button").focus();
});
$("download").addEventListener("click", () => {
  const blob = new Blob([JSON.stringify(found, null, 1)], { type: "application/json" });
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: "results.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
});
$("details-close").addEventListener("click", () => details.close());
details.addEventListener("click", (event) => { if (event.target === details) details.close(); });
$("details-like").addEventListener("click", () => moreLike(shown));
$("details-removal").addEventListener("click", () => {
  openRemoval($("removal").hidden);
  if (!$("removal").hidden) $("removal").elements.reason.focus();
});
$("removal").addEventListener("submit", sendRemoval);
addEventListener("keydown", (event) => {
  if (event.key === "/" && !details.open && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    text.focus();
  }
});

$("examples").append(...EXAMPLES.map((example) => {
  const button = element("button", { type: "button", className: "plain", textContent: example });
  button.addEventListener("click", () => run({ ...queryOfForm(), text: example }));
  return element("li", {}, button);
}));

fetch("/about").then((response) => response.json()).then((answer) => {
  about = answer;
  $("about").textContent = `${count(answer.samples)} images`;
  $("generated").hidden = !answer.generated;
  $("report").hidden = !answer.report;
  offerHeads(answer.heads);
}).catch(() => { $("about").textContent = ""; });
enter(history.state?.entry);
history.replaceState({ entry }, "");
run(queryOfAddress(), { push: false, place: placeLeft(entry) });
