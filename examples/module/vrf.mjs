// A module for Node.js that requests a verifiable random number from the node. It needs only the
// standard library.
import http from "node:http";

const socketPath = process.env.BASALT_SOCKET ?? "/run/basalt/trustd.sock";

// Makes an API call and returns the response.
const call = (name, request) =>
  new Promise((resolve, reject) => {
    const headers = { "content-type": "application/json" };
    const options = { socketPath, path: `/v1/${name}`, method: "POST", headers };
    const sent = http.request(options, async (response) => {
      let text = "";
      for await (const chunk of response) text += chunk;
      const answer = JSON.parse(text);
      if (response.statusCode === 200) resolve(answer);
      else reject(new Error(`${name}: ${answer.error.message}`));
    });
    sent.on("error", reject).end(JSON.stringify(request));
  });

const alpha = Buffer.from("round 1").toString("hex");
const { suite, public_key, pi, beta } = await call("vrf/prove", {
  suite: "ECVRF-EDWARDS25519-SHA512-TAI",
  alpha,
});
const result = await call("vrf/verify", { suite, public_key, alpha, pi });
console.log(result.valid ? "valid" : "not valid", beta);
