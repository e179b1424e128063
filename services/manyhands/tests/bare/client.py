#!/usr/bin/env python3
"""WebSocket clients that know the published JSON protocol and nothing else.

Plain Python 3, standard library only. Commands come as JSON lines on standard input, what happens goes out as
JSON lines on standard output; each line names its client. A client keeps the state exactly as the protocol
says: `init` gives it, each `op` sets one key.

    {"client": "a", "do": "connect", "address": "127.0.0.1:8080", "path": "/v1/sync/w?token=…"}
    {"client": "a", "do": "send", "text": "{…}"}       any text, also a wrong one
    {"client": "a", "do": "binary", "hex": "00ff"}
    {"client": "a", "do": "state"}
    {"client": "a", "do": "close"}
    {"client": "a", "do": "storm", "seed": 1, "keys": 8, "rate": 10, "seconds": 5}
    {"client": "a", "do": "quiet", "seconds": 1}       says when nothing has come for so long
"""

import base64
import hashlib
import heapq
import json
import os
import random
import selectors
import socket
import struct
import sys
import time

MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

selector = selectors.DefaultSelector()
clients = {}
due = []  # (when, number, what to do)


def say(name, event, **what):
    sys.stdout.write(json.dumps({"client": name, "event": event, **what}) + "\n")
    sys.stdout.flush()


def later(seconds, what):
    heapq.heappush(due, (time.monotonic() + seconds, random.getrandbits(64), what))


class Client:
    def __init__(self, name):
        self.name, self.socket, self.received = name, None, b""
        self.state, self.heads, self.message = None, None, b""
        self.sent = self.heard = 0
        self.heard_at = time.monotonic()
        self.storm, self.refused = None, False

    def connect(self, address, path, headers=None, **_):
        """The handshake of RFC 6455, by hand."""
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET {path} HTTP/1.1", f"Host: {address}", "Upgrade: websocket", "Connection: Upgrade",
                 f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        data = b""
        while b"\r\n\r\n" not in data:
            more = self.socket.recv(65536)
            if not more:
                return say(self.name, "gone")
            data += more
        head, self.received = data.split(b"\r\n\r\n", 1)
        first, *rest = head.decode("latin-1").split("\r\n")
        answer = {name.strip().lower(): value.strip() for name, value in (line.split(":", 1) for line in rest)}
        status = int(first.split()[1])
        if status != 101:
            length = int(answer.get("content-length", 0))
            while len(self.received) < length:
                more = self.socket.recv(65536)
                if not more:
                    break
                self.received += more
            body = self.received.decode()
            say(self.name, "refused", status=status, headers=answer, body=body)
            self.socket.settimeout(None)
            self.refused = True
            selector.register(self.socket, selectors.EVENT_READ, self)
            return
        accept = base64.b64encode(hashlib.sha1((key + MAGIC).encode()).digest()).decode()
        if answer.get("sec-websocket-accept") != accept:
            return say(self.name, "wrong", what="Sec-WebSocket-Accept")
        say(self.name, "open", status=status, headers=answer)
        self.socket.settimeout(None)
        selector.register(self.socket, selectors.EVENT_READ, self)
        self.frames()

    def frame(self, opcode, payload):
        if self.socket is None:
            return
        mask = os.urandom(4)
        length = len(payload)
        if length < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
        elif length < 65536:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
        key = int.from_bytes((mask * (length // 4 + 1))[:length], "big")
        body = (int.from_bytes(payload, "big") ^ key).to_bytes(length, "big") if length else b""
        try:
            self.socket.sendall(head + mask + body)
        except OSError as error:
            self.gone(None, str(error))

    def send(self, text, **_):
        self.frame(TEXT, text.encode())

    def binary(self, hex, **_):
        self.frame(BINARY, bytes.fromhex(hex))

    def close(self, **_):
        self.frame(CLOSE, struct.pack("!H", 1000))

    def gone(self, code, reason):
        if self.socket is not None:
            selector.unregister(self.socket)
            self.socket.close()
            self.socket = None
            say(self.name, "closed", code=code, reason=reason)

    def readable(self):
        try:
            data = self.socket.recv(1 << 20)
        except OSError as error:
            return self.gone(None, str(error))
        if not data:
            return self.gone(None, "the connection ended")
        self.received += data
        if not self.refused:
            self.frames()

    def frames(self):
        while self.socket is not None and len(self.received) >= 2:
            first, second = self.received[0], self.received[1]
            length, at = second & 127, 2
            if length == 126:
                length, at = struct.unpack("!H", self.received[2:4])[0] if len(self.received) >= 4 else 1 << 62, 4
            elif length == 127:
                length, at = struct.unpack("!Q", self.received[2:10])[0] if len(self.received) >= 10 else 1 << 62, 10
            if len(self.received) < at + length:
                return
            payload, self.received = self.received[at:at + length], self.received[at + length:]
            opcode = first & 15
            if opcode == PING:
                self.frame(PONG, payload)
            elif opcode == CLOSE:
                code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else None
                self.frame(CLOSE, payload[:2])
                self.gone(code, payload[2:].decode())
            elif opcode in (0, TEXT):
                self.message += payload
                if first & 0x80:
                    text, self.message = self.message.decode(), b""
                    self.heard_at = time.monotonic()
                    self.heard += 1
                    self.take(text)
            elif opcode == BINARY:
                say(self.name, "binary", hex=payload.hex())

    def take(self, text):
        """All that a client must know of the protocol."""
        message = json.loads(text)
        if message["type"] == "init":
            self.state, self.heads = message["data"], message["heads"]
        elif message["type"] == "op":
            payload = message["payload"]
            self.state[payload["key"]] = payload["value"]
        if self.storm is None or message["type"] == "error":
            say(self.name, "message", text=text)

    def tell_state(self, **_):
        say(self.name, "state", state=self.state, heads=self.heads, sent=self.sent, heard=self.heard)

    def begin_storm(self, seed, keys, rate, seconds, **_):
        """Writes at random, every other time with a timestamp, without waiting for any answer."""
        self.storm = random.Random(seed)
        end = time.monotonic() + seconds

        def write():
            if self.socket is None or time.monotonic() >= end:
                return say(self.name, "stormed", sent=self.sent)
            self.sent += 1
            payload = {"key": f"k{self.storm.randrange(keys)}", "value": f"{self.name}-{self.sent}"}
            if self.storm.random() < 0.5:
                payload["timestamp"] = int(time.time() * 1_000_000)
            self.send(json.dumps({"type": "op", "payload": payload}))
            later(self.storm.expovariate(rate), write)

        later(self.storm.random() / rate, write)

    def quiet(self, seconds, **_):
        def look():
            since = time.monotonic() - self.heard_at
            if since >= seconds or self.socket is None:
                self.tell_state()
            else:
                later(seconds - since + 0.001, look)

        look()


DO = {"connect": Client.connect, "send": Client.send, "binary": Client.binary, "state": Client.tell_state,
      "close": Client.close, "storm": Client.begin_storm, "quiet": Client.quiet}


def main():
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
    commands = b""
    while True:
        wait = max(0, due[0][0] - time.monotonic()) if due else None
        for key, _ in selector.select(wait):
            if key.data is not None:
                # An earlier one in this round may have closed it.
                if key.data.socket is not None:
                    key.data.readable()
                continue
            data = os.read(sys.stdin.fileno(), 1 << 16)
            if not data:
                return
            *lines, commands = (commands + data).split(b"\n")
            for line in lines:
                command = json.loads(line)
                client = clients.setdefault(command["client"], Client(command["client"]))
                what = DO[command.pop("do")]
                command.pop("client")
                try:
                    what(client, **command)
                except OSError as error:
                    say(client.name, "wrong", what=str(error))
        while due and due[0][0] <= time.monotonic():
            heapq.heappop(due)[2]()


if __name__ == "__main__":
    main()
