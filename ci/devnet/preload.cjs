'use strict';
// Preloaded into both nodes (node --require).
// Node 20 has no Promise.withResolvers, which libp2p's newer dependencies call.
if (!Promise.withResolvers)
  Promise.withResolvers = function () {
    let resolve, reject;
    const promise = new Promise((a, b) => ((resolve = a), (reject = b)));
    return { promise, resolve, reject };
  };
// The execution node binds its peer port to all addresses whatever it is told: bind to loopback only.
const net = require('net');
const dgram = require('dgram');
const local = (a) => (a === '0.0.0.0' || a === '::' ? '127.0.0.1' : a);
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...args) {
  if (typeof args[0] === 'number') args[1] = typeof args[1] === 'string' ? local(args[1]) : args[1];
  else if (args[0] && typeof args[0] === 'object' && args[0].host) args[0] = { ...args[0], host: local(args[0].host) };
  return listen.apply(this, args);
};
const bind = dgram.Socket.prototype.bind;
dgram.Socket.prototype.bind = function (...args) {
  if (typeof args[1] === 'string') args[1] = local(args[1]);
  return bind.apply(this, args);
};
