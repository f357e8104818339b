/* The live page: four networks in the reader's browser, side by side. Nothing leaves it: all there is to load lies beside
   this file, as scripts, because a page opened from the disk can load nothing else. */
"use strict";
(() => {
  const folder = document.currentScript.src.replace(/[^/]*$/, "");
  const find = id => document.getElementById(`live-${id}`);
  const BLOCKS = 30, TICKS = 50, LONGEST = 20; // a block of runs lasts 50 steps of the clock, or 20 ms
  let networks, card, sessions = {}, chosen = null, camera = null, asking = false;
  let turn = 0, working = Promise.resolve(); // one measurement at a time, and only the last one is shown

  const say = text => { find("status").textContent = text; };
  const load = name => new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = folder + name;
    script.onload = done;
    script.onerror = () => failed(new Error(`${name} is not there`));
    document.head.append(script);
  });
  function bytes(text) { // by a loop: Uint8Array.from takes seconds for the runtime
    const letters = atob(text), made = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) made[i] = letters.charCodeAt(i);
    return made;
  }

  async function start() {
    find("start").disabled = true;
    say("Loading the runtime and the networks …");
    const begun = performance.now();
    try {
      await load("networks.js");
      await load("runtime.js");
    } catch (error) {
      find("start").disabled = false;
      say("This copy of the book was built without its runtime, onnxruntime-web, which comes from npm: run “make book” once with a network.");
      return;
    }
    try {
      networks = live.networks;
      card = networks.card;
      document.head.append(Object.assign(document.createElement("script"), { textContent: live.runtime.script })); // `ort`
      ort.env.wasm.numThreads = 1; // more need headers that a file has not
      ort.env.wasm.wasmBinary = bytes(live.runtime.wasm).buffer;
      ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([live.runtime.loader], { type: "text/javascript" })) };
      for (const [name, file] of Object.entries(networks.files))
        sessions[name] = await ort.InferenceSession.create(bytes(file));
      live.runtime = null;
    } catch (error) {
      say(`This browser cannot run the networks: ${error.message}`);
      return;
    }
    build();
    find("start").hidden = true;
    find("desk").hidden = false;
    live.ready = performance.now() - begun;
    say(`Ready after ${(live.ready / 1000).toFixed(1)} s. Choose a picture, then guess.`);
    find("pictures").querySelector("button").focus();
  }

  function build() {
    networks.pictures.forEach((picture, place) => {
      const button = document.createElement("button"), canvas = document.createElement("canvas");
      button.type = "button";
      button.ariaLabel = `sample picture ${place + 1}`;
      paint(canvas, pixelsOf(picture));
      button.append(canvas);
      button.onclick = () => show(pixelsOf(picture), picture.label);
      find("pictures").append(button);
    });
    card.classes.forEach((name, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.onclick = () => decide(place);
      find("guesses").append(button);
    });
    const pad = find("pad").getContext("2d");
    wipe();
    find("pad").onpointerdown = event => { find("pad").setPointerCapture(event.pointerId); pad.beginPath(); draw(event); };
    find("pad").onpointermove = event => { if (event.buttons) draw(event); };
    find("pad").onpointerup = () => take(find("pad"), false);
    find("wipe").onclick = wipe;
    find("file").onclick = event => { event.target.value = ""; }; // the same file may be chosen again
    find("file").onchange = event => open(event.target.files[0]);
    document.addEventListener("dragover", event => event.preventDefault());
    document.addEventListener("drop", event => { event.preventDefault(); open(event.dataTransfer.files[0]); });
    find("camera").onclick = () => camera ? snap() : film();
    document.addEventListener("visibilitychange", () => { if (document.hidden) stop(); });
    addEventListener("pagehide", stop);
  }

  /* Pictures: all become 32 x 32 pixels in the same way, RGBA. */
  function pixelsOf(picture) {
    const rgb = bytes(picture.pixels), [, height, width] = card.shape, made = new ImageData(width, height);
    for (let i = 0; i < width * height; i++) made.data.set([rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2], 255], 4 * i);
    return made;
  }

  function paint(canvas, pixels) {
    canvas.width = pixels.width;
    canvas.height = pixels.height;
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  function take(source, move = true) {
    const [, height, width] = card.shape, w = source.videoWidth || source.width, h = source.videoHeight || source.height;
    let side = Math.min(w, h), from = source, x = (w - side) / 2, y = (h - side) / 2;
    while (side > 2 * width) { // by halves, since canvases skip pixels when they shrink by more
      const half = new OffscreenCanvas(Math.ceil(side / 2), Math.ceil(side / 2));
      half.getContext("2d").drawImage(from, x, y, side, side, 0, 0, half.width, half.height);
      [from, x, y, side] = [half, 0, 0, half.width];
    }
    const small = new OffscreenCanvas(width, height), paper = small.getContext("2d");
    paper.imageSmoothingQuality = "high";
    paper.fillStyle = "white";
    paper.fillRect(0, 0, width, height);
    paper.drawImage(from, x, y, side, side, 0, 0, width, height);
    show(paper.getImageData(0, 0, width, height), null, move);
  }

  async function open(file) {
    if (!file) return say("That was no file. Save the picture first, then choose or drop it.");
    try {
      const picture = await createImageBitmap(file, { imageOrientation: "from-image" });
      take(picture);
      picture.close();
    } catch (error) {
      say(`${file.name} is no picture that this browser can read.`);
    }
  }

  const REFUSED = { NotAllowedError: "the permission was refused", NotFoundError: "none was found",
                    NotReadableError: "another program holds it" };

  async function film() {
    if (asking) return;
    asking = true;
    const video = find("video");
    try {
      if (!navigator.mediaDevices) throw new Error("browsers give it only to a page from https or from this machine");
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      video.hidden = false;
      await video.play();
      camera = video.srcObject;
      camera.getVideoTracks()[0].onended = stop; // unplugged
      find("camera").textContent = "Take this picture and stop the webcam";
      say("The webcam runs. What it shows stays on this page.");
    } catch (error) {
      stop();
      say(`No webcam: ${REFUSED[error.name] ?? error.message}. Choose another source.`);
    }
    asking = false;
    if (document.hidden) stop(); // left while the browser asked
  }

  function snap() {
    take(find("video"));
    stop();
  }

  function stop() {
    find("video").srcObject?.getTracks().forEach(track => track.stop());
    find("video").hidden = true;
    find("camera").textContent = "Turn on the webcam";
    camera = null;
  }

  function wipe() {
    const pad = find("pad"), paper = pad.getContext("2d");
    paper.fillStyle = "white";
    paper.fillRect(0, 0, pad.width, pad.height);
  }

  function draw(event) {
    const pad = find("pad"), box = pad.getBoundingClientRect(), paper = pad.getContext("2d");
    paper.lineWidth = 14;
    paper.lineCap = paper.lineJoin = "round";
    paper.strokeStyle = find("colour").value;
    paper.lineTo((event.clientX - box.left) * pad.width / box.width, (event.clientY - box.top) * pad.height / box.height);
    paper.stroke();
  }

  /* Networks. */
  function tensor(pixels) {
    const [channels, height, width] = card.shape, size = height * width, made = new Float32Array(channels * size);
    for (let c = 0; c < channels; c++)
      for (let i = 0; i < size; i++) made[c * size + i] = (pixels.data[4 * i + c] / 255 - card.mean[c]) / card.std[c];
    return new ort.Tensor("float32", made, [1, channels, height, width]);
  }

  async function run(name, taken) {
    const session = sessions[name];
    return (await session.run({ [session.inputNames[0]]: taken }))[session.outputNames[0]].data;
  }

  /* The milliseconds that some runs take together. */
  async function timed(name, taken, many) {
    const begun = performance.now();
    for (let i = 0; i < many; i++) await run(name, taken);
    return performance.now() - begun;
  }

  function show(pixels, label, move = true) {
    chosen = { pixels, label };
    turn += 1; // what is still being measured is of another picture
    paint(find("seen"), pixels);
    find("ask").hidden = false;
    find("answer").hidden = true;
    say("What is it? Guess before the networks do.");
    if (!move) return;
    find("guesses").querySelector("button").focus({ preventScroll: true });
    find("ask").scrollIntoView({ block: "nearest" });
  }

  function decide(place) {
    const mine = ++turn;
    say("The networks are looking …");
    working = working.then(() => look(place, mine)).catch(error => say(`The networks failed: ${error.message}`));
  }

  /* Browsers make their clock coarse, up to steps of a millisecond and more: what is timed has to be longer. */
  function step() {
    const begun = performance.now();
    let now = begun;
    while (now === begun) now = performance.now();
    return now - begun;
  }

  async function look(guess, mine) {
    const names = Object.keys(sessions), taken = tensor(chosen.pixels), outputs = {}, many = {}, times = {};
    const least = Math.min(LONGEST, TICKS * Math.max(step(), step(), step()));
    for (const name of names) {
      outputs[name] = await run(name, taken);
      many[name] = 1; // doubled until a block is long enough, which warms up too
      while (await timed(name, taken, many[name]) < least && many[name] < 1024) many[name] *= 2;
      times[name] = [];
    }
    for (let block = 0; block < BLOCKS && mine === turn; block++) { // by turns: a disturbance falls on all alike
      for (const name of names) times[name].push(await timed(name, taken, many[name]) / many[name]);
      await new Promise(done => setTimeout(done)); // the page stays alive
    }
    if (mine !== turn) return;
    const rows = names.map(name => {
      const logits = [...outputs[name]], top = Math.max(...logits), shares = logits.map(v => Math.exp(v - top));
      const sorted = times[name].sort((a, b) => a - b), ms = (sorted[BLOCKS / 2 - 1] + sorted[BLOCKS / 2]) / 2;
      return { name, best: logits.indexOf(top), share: 1 / shares.reduce((a, b) => a + b), ms,
               mb: bytes(networks.files[name]).length / 1e6 };
    });
    find("rows").replaceChildren(...rows.map(row => {
      const line = document.createElement("tr"), head = document.createElement("th");
      head.scope = "row";
      head.textContent = row.name;
      line.append(head);
      const cells = [card.classes[row.best], `${(100 * row.share).toFixed(0)} %`, row.ms.toFixed(2),
                     (rows[0].ms / row.ms).toFixed(2), row.mb.toFixed(3)];
      for (const text of cells) line.insertCell().textContent = text;
      return line;
    }));
    find("answer").hidden = false;
    find("answer").scrollIntoView({ block: "nearest" });
    const right = chosen.label === null ? "Nobody but you knows the answer."
      : `It is: ${card.classes[chosen.label]}. ${guess === chosen.label ? "You were right." : "You were wrong."}`;
    say(`You said ${card.classes[guess]}. ${right}`);
  }

  globalThis.live = Object.assign(globalThis.live ?? {}, {
    logits: async pixels => {
      const found = {};
      for (const name of Object.keys(sessions)) found[name] = [...await run(name, tensor(pixels ?? chosen.pixels))];
      return found;
    },
    samples: () => networks.pictures.map(pixelsOf),
    seen: () => [...chosen.pixels.data],
  });
  find("start").onclick = start;
})();
