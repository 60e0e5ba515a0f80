'use strict';
// The API of npm's snappy 6 (a native module) on top of snappyjs. Callbacks come asynchronously, as there.
const js = require('snappyjs');

const bytes = (x) => {
  if (typeof x === 'string') return Buffer.from(x);
  if (x instanceof Uint8Array) return x;
  throw new Error('input must be a String or a Buffer');
};
const buffer = (u) => Buffer.from(u.buffer, u.byteOffset, u.byteLength);

exports.compressSync = (input) => buffer(js.compress(bytes(input)));

exports.uncompressSync = (input, opts) => {
  const out = buffer(js.uncompress(bytes(input)));
  return opts && opts.asBuffer === false ? out.toString() : out;
};

exports.isValidCompressedSync = (input) => {
  try {
    js.uncompress(bytes(input));
    return true;
  } catch (e) {
    return false;
  }
};

const later = (f) => (...args) => {
  const callback = args.pop();
  let error = null;
  let out;
  try {
    out = f(...args);
  } catch (e) {
    error = e;
  }
  setImmediate(callback, error, out);
};

exports.compress = later(exports.compressSync);
exports.uncompress = later(exports.uncompressSync);
exports.isValidCompressed = later(exports.isValidCompressedSync);
