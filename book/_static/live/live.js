/* The live page: four networks in the reader's browser, side by side. Nothing leaves it: all there is to load lies beside
   this file, as scripts, because a page opened from the disk can load nothing else. */
"use strict";
(() => {
  const folder = document.currentScript.src.replace(/[^/]*$/, "");
  const find = id => document.getElementById(`live-${id}`);
  const RUNS = 30, WARM_UP = 3;
  let networks, card, sessions = {}, chosen = null, guess = null, camera = null, turn = 0;

  const say = text => { find("status").textContent = text; };
  const load = name => new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = folder + name;
    script.onload = done;
    script.onerror = () => failed(new Error(`${name} is not there`));
    document.head.append(script);
  });
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));

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
    find("pad").onpointerup = () => take(find("pad"));
    find("wipe").onclick = wipe;
    find("file").onchange = event => open(event.target.files[0]);
    find("desk").ondragover = event => event.preventDefault();
    find("desk").ondrop = event => { event.preventDefault(); open(event.dataTransfer.files[0]); };
    find("camera").onclick = () => camera ? stop() : film();
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

  function take(source) {
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
    show(paper.getImageData(0, 0, width, height), null);
  }

  async function open(file) {
    if (!file) return;
    try {
      const picture = await createImageBitmap(file, { imageOrientation: "from-image" });
      take(picture);
      picture.close();
    } catch (error) {
      say(`${file.name} is no picture that this browser can read.`);
    }
  }

  async function film() {
    try {
      camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      say(`No webcam: ${error.name === "NotAllowedError" ? "the permission was refused" : error.message}. Choose another source.`);
      return;
    }
    const video = find("video");
    video.srcObject = camera;
    video.hidden = false;
    await video.play();
    find("camera").textContent = "Take this picture and stop the webcam";
    find("camera").onclick = () => { take(video); stop(); };
    say("The webcam runs. What it shows stays on this page.");
  }

  function stop() {
    if (!camera) return;
    camera.getTracks().forEach(track => track.stop());
    camera = null;
    find("video").hidden = true;
    find("camera").textContent = "Turn on the webcam";
    find("camera").onclick = () => film();
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

  function show(pixels, label) {
    chosen = { pixels, label };
    guess = null;
    turn += 1; // what is still being computed is of another picture
    paint(find("seen"), pixels);
    find("ask").hidden = false;
    find("answer").hidden = true;
    say("What is it? Guess before the networks do.");
  }

  async function decide(place) {
    guess = place;
    const mine = turn, taken = tensor(chosen.pixels), times = {}, outputs = {};
    const names = Object.keys(sessions);
    say("The networks are looking …");
    for (let round = -WARM_UP; round < RUNS; round++) // by turns, so that a disturbance falls on all alike
      for (const name of names) {
        const begun = performance.now();
        outputs[name] = await run(name, taken);
        if (round >= 0) (times[name] ??= []).push(performance.now() - begun);
      }
    if (mine !== turn) return;
    const rows = names.map(name => {
      const logits = [...outputs[name]], top = Math.max(...logits), shares = logits.map(v => Math.exp(v - top));
      const best = logits.indexOf(top), sorted = times[name].sort((a, b) => a - b);
      return { name, best, share: 1 / shares.reduce((a, b) => a + b), ms: sorted[RUNS / 2],
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
    const right = chosen.label === null ? "Nobody but you knows the answer."
      : `It is: ${card.classes[chosen.label]}. ${guess === chosen.label ? "You were right." : "You were not."}`;
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
