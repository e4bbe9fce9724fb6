const SHORT_SIDE = 768; // px that a photograph is reduced to before it is sent: several times what the model sees
const SMALL = 400_000; // bytes that are sent as they are
const PATIENCE = 5_000; // ms until the page says that it takes long
const LIMIT = 90_000; // ms until it gives up
const RETRIES = 3; // where the service is busy

const $ = (id) => document.getElementById(id);
let current = null; // the AbortController of the request under way
let last = null; // the file to try again with

/** Show one of the three faces of the outcome, or none, and tell what there is to tell: screen readers read it out. */
function show(face, text = "") {
  const within = $("outcome").contains(document.activeElement); // on a button that may vanish
  for (const id of ["waiting", "failure", "answer"]) $(id).hidden = id !== face;
  if (within) $(face ? "outcome" : "choose").focus();
  if (face) $(face).scrollIntoView({ block: "nearest" }); // on a phone it stands below the photograph
  $("told").classList.toggle("error", face === "failure");
  tell(text);
}

function tell(text) {
  $("told").textContent = text;
}

function fail(message, retry) {
  $("again").hidden = !retry;
  show("failure", message);
}

/** A large photograph made small enough for a slow network; anything else as it is. */
async function reduced(file) {
  if (file.size <= SMALL || !self.createImageBitmap) return file;
  let picture;
  try {
    picture = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return file; // not a picture for this browser: the service says what is wrong
  }
  const scale = Math.min(1, SHORT_SIDE / Math.min(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(picture.width * scale);
  canvas.height = Math.round(picture.height * scale);
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  return blob && blob.size < file.size ? blob : file;
}

const pause = (ms, signal) =>
  new Promise((done, stop) => {
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); stop(signal.reason); }, { once: true });
  });

/** Rejects when the signal comes. */
const givenUp = (signal) =>
  new Promise((_, stop) => signal.addEventListener("abort", () => stop(signal.reason), { once: true }));

/** Send the picture; where the service is busy, come again as it asks. */
async function ask(picture, signal) {
  const form = new FormData();
  form.append("files", picture, "photograph");
  for (let attempt = 0; ; attempt++) {
    const response = await fetch("predict?top_k=5", { method: "POST", body: form, signal });
    const seconds = response.status === 503 && Number(response.headers.get("Retry-After"));
    if (!seconds || attempt === RETRIES) return response;
    tell("The service is busy. Trying again …");
    await pause(1000 * seconds, signal);
  }
}

async function identify(file) {
  current?.abort("replaced");
  const controller = (current = new AbortController());
  last = file;
  URL.revokeObjectURL($("preview").src);
  $("preview").src = URL.createObjectURL(file);
  show("waiting", "Looking at it …");
  const slow = setTimeout(() => tell("Still at it. A slow network takes a while …"), PATIENCE);
  const late = setTimeout(() => controller.abort("late"), LIMIT);
  let response, told;
  try {
    const picture = await Promise.race([reduced(file), givenUp(controller.signal)]);
    response = await ask(picture, controller.signal);
    told = await response.json().catch((error) => { if (response.ok) throw error; });
    controller.signal.throwIfAborted();
  } catch {
    if (controller !== current) return;
    const reason = controller.signal.reason;
    if (reason === "cancelled") show(null);
    else if (reason === "late") fail("No answer came in a minute and a half. The network may be slow.", true);
    else fail(navigator.onLine ? "The service cannot be reached." : "You are offline.", true);
    return;
  } finally {
    clearTimeout(slow);
    clearTimeout(late);
  }
  try {
    if (response.ok) answer(told.images[0].guesses);
    else fail(sentence(response.status, told?.detail), response.status >= 500 || response.status === 408);
  } catch (error) {
    console.error(error);
    fail("The service's answer cannot be shown.", true);
  }
}

/** What the service's refusal means to the person at the page. */
function sentence(status, detail) {
  if (status === 415) return "This is not a photograph that can be read: JPEG, PNG or WebP, please.";
  if (status === 422) return "The photograph is damaged or cut short. Try another copy of it.";
  if (status === 413) return "The photograph is too large. Try a smaller copy of it.";
  if (status === 408) return "The photograph took too long to arrive.";
  if (status === 503) return "The service is busy. Try again in a moment.";
  return detail ? `That did not work: ${detail}.` : `That did not work (${status}).`;
}

const percent = (share) => (share > 0 && share < 0.01 ? "< 1 %" : `${Math.round(100 * share)} %`);

function answer(guesses) {
  const [first] = guesses;
  const verdict =
    first.probability >= 0.7 ? `Most likely ${first.name}.`
    : first.probability >= 0.35 ? `Perhaps ${first.name}.`
    : "Hard to say. These come nearest:";
  $("guesses").replaceChildren(...guesses.map(({ name, probability }) => {
    const item = $("guess").content.cloneNode(true);
    item.querySelector(".name").textContent = name;
    item.querySelector(".share").textContent = percent(probability);
    item.querySelector(".bar").style.width = `${100 * probability}%`;
    return item;
  }));
  show("answer", verdict);
}

for (const id of ["choose", "take"]) {
  $(id).addEventListener("change", ({ target }) => {
    if (target.files[0]) identify(target.files[0]);
    target.value = ""; // so that the same file can be chosen again
  });
}
$("preview").addEventListener("load", () => { $("preview").hidden = false; });
$("preview").addEventListener("error", () => { $("preview").hidden = true; });
$("again").addEventListener("click", () => identify(last));
$("cancel").addEventListener("click", () => current.abort("cancelled"));

let over = 0; // of enter and leave events, which come for each element
document.addEventListener("dragenter", () => { over++; $("drop").classList.add("over"); });
document.addEventListener("dragleave", () => { if (--over === 0) $("drop").classList.remove("over"); });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  over = 0;
  $("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) identify(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files[0]) identify(event.clipboardData.files[0]);
});

fetch("model").then((response) => response.json()).then((model) => {
  const version = model.version ? ` ${model.version}` : "";
  const score = model.scores.macro_f1 == null ? "" : `, macro F1 ${model.scores.macro_f1.toFixed(3)} on validation`;
  $("model").textContent = `Model ${model.name}${version}: ${model.classes.length} kinds${score}.`;
}).catch(() => {});
