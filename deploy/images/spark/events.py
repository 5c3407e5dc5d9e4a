"""On the master: takes the event logs of drivers, and shows them to whoever asks.

    18081   PUT /NAME?at=BYTES, the next piece of a log from there; with `&done`, its last. The answer is how much of it there is then,
            and 409 where that is not `at`.
    18080   the history server. It begins with the first connection and ends when nobody has been there for a while: it takes as much
            memory as the master itself.

Both are for the cluster's own network, like all of its ports. What is kept is bounded; the oldest goes first.
"""

import http.server
import os
import re
import socket
import socketserver
import subprocess
import threading
import time
import urllib.parse

FOLDER = "/var/lib/spark/events"
GROWING = ".inprogress"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
# Bytes: of a piece, of one log, of all of them.
PIECE, LARGEST, ROOM = 4 << 20, 256 << 20, 1 << 30
# How many: the history server has a line of each in memory.
MOST = 1000
PORT, PAGES, BEHIND = 18081, 18080, 18082
# Seconds: for a peer to go on, for the history server to begin, and for it to be kept that nobody asks.
SILENT, BEGINS, IDLE = 10, 90, 600
START = "/opt/enoki/spark/history"

lock = threading.Lock()


def take(name, at, piece, done):
    """Adds a piece. The answer's code, and what it says."""
    whole = os.path.join(FOLDER, name)
    growing = whole + GROWING
    with lock:
        if os.path.exists(whole):
            return 200, at + len(piece)
        size = os.path.getsize(growing) if os.path.exists(growing) else 0
        if at != size:
            return 409, size
        if size + len(piece) > LARGEST:
            return 413, f"more than {LARGEST >> 20} MiB"
        with open(growing, "ab") as log:
            log.write(piece)
        if done:
            os.rename(growing, whole)
        trim(name)
        return 200, size + len(piece)


def trim(newest):
    """Removes the oldest beyond the bounds."""
    logs = [(entry.stat(), entry) for entry in os.scandir(FOLDER) if entry.is_file()]
    logs.sort(key=lambda log: log[0].st_mtime)
    room, count = sum(stat.st_size for stat, _ in logs), len(logs)
    for stat, entry in logs:
        if (room <= ROOM and count <= MOST) or entry.name.removesuffix(GROWING) == newest:
            return
        os.remove(entry.path)
        room, count = room - stat.st_size, count - 1


class Taker(http.server.BaseHTTPRequestHandler):
    timeout = SILENT

    def do_PUT(self):
        asked = urllib.parse.urlsplit(self.path)
        name, query = asked.path[1:], urllib.parse.parse_qs(asked.query, keep_blank_values=True)
        at, length = query.get("at", [""])[0], self.headers.get("Content-Length", "")
        if not NAME.fullmatch(name) or name.endswith(GROWING) or not at.isdigit() or not length.isdigit():
            return self.answer(400, "a log's name, ?at=BYTES and a length")
        if int(length) > PIECE:
            return self.answer(413, f"more than {PIECE >> 20} MiB at once")
        piece = self.rfile.read(int(length))
        if len(piece) < int(length):
            return self.answer(400, "it broke off")
        try:
            self.answer(*take(name, int(at), piece, "done" in query))
        except OSError as error:
            self.answer(507, error.strerror or "no room")

    def answer(self, code, text):
        body = f"{text}\n".encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class History:
    """The history server, there while somebody asks."""

    def __init__(self):
        self.lock = threading.Lock()
        self.process = None
        self.visitors = 0
        self.left = 0.0

    def connect(self):
        """A connection to it, which is begun for that. An error: it does not come up."""
        until = time.monotonic() + BEGINS
        with self.lock:
            self.begin()
            process = self.process
        while True:
            try:
                return socket.create_connection(("127.0.0.1", BEHIND), SILENT)
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def begin(self):
        if self.process and self.process.poll() is None:
            return
        self.process = subprocess.Popen([START], env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "256m"})
        try:
            # Where memory runs out it is this one that goes, not the master.
            with open(f"/proc/{self.process.pid}/oom_score_adj", "w") as score:
                score.write("1000")
        except OSError:
            pass

    def tend(self):
        """Ends it when nobody has been there for a while."""
        while True:
            time.sleep(SILENT)
            with self.lock:
                idle = self.visitors == 0 and time.monotonic() - self.left > IDLE
                if self.process and idle:
                    # It keeps nothing of its own.
                    self.process.kill()
                    self.process.wait()
                    self.process = None

    def come(self, by):
        with self.lock:
            self.visitors += by
            self.left = time.monotonic()


history = History()


class Visitor(socketserver.BaseRequestHandler):
    def handle(self):
        history.come(1)
        try:
            self.lead()
        finally:
            history.come(-1)

    def lead(self):
        near = self.request
        try:
            far = history.connect()
        except OSError:
            text = b"the history server does not come up: see the master's log\n"
            near.sendall(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
            return
        with far:
            far.settimeout(None)
            back = threading.Thread(target=pass_on, args=(far, near), daemon=True)
            back.start()
            pass_on(near, far)
            back.join()


def pass_on(near, far):
    """Bytes from one to the other, to their end."""
    try:
        while piece := near.recv(65536):
            far.sendall(piece)
    except OSError:
        pass
    try:
        far.shutdown(socket.SHUT_WR)
    except OSError:
        pass


class Threads(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


def main():
    os.makedirs(FOLDER, exist_ok=True)
    threading.Thread(target=history.tend, daemon=True).start()
    with Threads(("", PAGES), Visitor) as pages, Threads(("", PORT), Taker) as logs:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        logs.serve_forever()


main()
