// Plays the pieces of an answer one behind the other while more of them arrive.
window.cslm = {
  rate: 16000,
  // The answer that is played, and the one that the visitor has ended: what is still on its way of that one is late.
  answer: null,
  ended: null,
  heard: 0,
  // When the sound that is queued ends, on the clock of the audio context.
  end: 0,
  dry: 0,
  seconds: 0,

  begin() {
    this.stop();
    this.ended = this.answer;
    this.context = new AudioContext({ sampleRate: this.rate });
    this.heard = this.end = this.dry = this.seconds = 0;
  },

  stop() {
    if (this.context && this.context.state !== "closed") this.context.close();
    this.context = null;
  },

  play(value) {
    if (!value) return;
    const { answer, pieces } = JSON.parse(value);
    if (answer !== this.answer) this.heard = 0;
    this.answer = answer;
    if (!this.context || answer === this.ended) return;
    for (const piece of pieces.slice(this.heard)) this.queue(piece);
    this.heard = pieces.length;
  },

  queue(piece) {
    const bytes = Uint8Array.from(atob(piece), (letter) => letter.charCodeAt(0));
    const whole = new Int16Array(bytes.buffer);
    const buffer = this.context.createBuffer(1, whole.length, this.rate);
    buffer.copyToChannel(Float32Array.from(whole, (sample) => sample / 32768), 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    if (this.end > 0 && this.context.currentTime > this.end) this.dry += 1;
    const start = Math.max(this.end, this.context.currentTime + 0.02);
    source.start(start);
    this.end = start + buffer.duration;
    this.seconds += buffer.duration;
  },
};
