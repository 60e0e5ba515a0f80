#!/usr/bin/env python3
"""A module in Python that requests a verifiable random number from the node.

It needs only the standard library.
"""

import http.client
import json
import os
import socket


class Node(http.client.HTTPConnection):
    """A connection to trustd over the socket of the module."""

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ.get("BASALT_SOCKET", "/run/basalt/trustd.sock"))

    def call(self, name, **request):
        """Makes an API call and returns the response. Ends the program on an error."""
        headers = {"content-type": "application/json"}
        self.request("POST", f"/v1/{name}", json.dumps(request), headers)
        response = self.getresponse()
        answer = json.load(response)
        if response.status != 200:
            raise SystemExit(f"{name}: {answer['error']['message']}")
        return answer


node = Node("trustd")
alpha = b"round 1".hex()
proof = node.call("vrf/prove", suite="ECVRF-EDWARDS25519-SHA512-TAI", alpha=alpha)
result = node.call(
    "vrf/verify",
    suite=proof["suite"],
    public_key=proof["public_key"],
    alpha=alpha,
    pi=proof["pi"],
)
print("valid" if result["valid"] else "not valid", proof["beta"])
