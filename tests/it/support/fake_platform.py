"""A Seqera Platform for the tests: its API, and the WebSocket client with which it pairs.

It shares no code with the product: websockets and cryptography come from Debian (python3-websockets,
python3-cryptography).

    fake_platform.py [--api PORT] [--control PORT] [--cert FILE --key FILE]

prints `listening api=127.0.0.1:PORT control=127.0.0.1:PORT`. With a certificate the API speaks HTTPS.

API, with or without /api before it (so that an endpoint may end in /api):
    GET  /user-info   /credentials[?workspaceId=]   /credentials/ID/keys?pairingId=[&workspaceId=]
    GET  /workflow/ID[?workspaceId=]   /workflow/ID/launch[?workspaceId=]
    POST /oauth/access_token           form: grant_type=refresh_token, refresh_token

Control, on its own port: bodies and answers are JSON, an unknown name is 400.
    POST /user         {token, id, userName?, email?, workspaces?: [1, 2]}          another token of a known id adds to it
    POST /revoke       {token}                          401 from now on
    POST /refresh      {refresh, token, next?, cookies?, status?}
                       the refresh token may be traded for `token` (of the user that `token` was given to by /user) and for
                       the refresh token `next`; cookies: "both" (default), "jwt", "none"; status: answer that instead
    POST /credentials  {workspace: 1 | null, user?: id, list: [{id, registry?, userName?, password?, provider?, name?,
                       status?, deleted?, secrets?: {whole decrypted object}}]}      replaces; null: personal, of `user`
    POST /workflow     {id, workspace?, status?, computeEnv?: {id, platform, credentialsId}}
    POST /key          {pairingId: ID | null}           whatever pairing id is asked with, that one's key encrypts
    POST /hold         {path}                           calls whose path contains it wait …
    POST /release      {path}                           … until then
    POST /answer       {path, status, body?, count?}    the next `count` (1) such calls are answered so, and not obeyed
    POST /pad          {path, bytes}                    answers to such calls carry so much more
    GET  /calls        [{method, path, query, authorization, body}] in order of arrival
    GET  /counts       {"GET /user-info": 3, …}         without /api and query
    POST /forget       {}                               empties both
    GET  /packet-keys  ["…"]                            the AES key of each packet, which are letters here
    POST /pair         {url: "ws://127.0.0.1:5000", endpoint, token?, service?, sessions?: 1, reconnect?: true, ca?: FILE}
                       opens sessions, and again when they end; each refusal counts
    GET  /sessions     [{id, endpoint, state: "connecting" | "open" | "ended", opened, pairingId, publicKey, closeCode,
                       refused, refusedStatus, heartbeats, requests}] (heartbeats: replies; opened, refused: how often)
    POST /heartbeat    {id?}                            sends one; all sessions without id, here and below
    POST /close        {id?, stay?: false}              closes properly; stay: does not come back
    POST /drop         {id?}                            cuts the connection
    POST /send         {id?, text} or {id?, binary: base64} or {id?, pieces: [text, …]}
    POST /behave       {id?, batch?: 2, reverse?: true, late?: seconds, fragment?: bytes, swallow?: 2, cut?: 1, noise?: true}
                       batch: answers only when so many requests have come, in reverse order; late: each answer comes so
                       much later; fragment: answers come in pieces; swallow: so many requests are not answered at all;
                       cut: the connection is cut at so many requests; noise: unknown and broken messages come before each
                       answer. All are off where they are not named.
"""

import argparse
import asyncio
import base64
import collections
import concurrent.futures
import http.client
import http.server
import json
import secrets
import ssl
import threading
import urllib.parse
import uuid

import websockets
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import load_der_public_key


class Platform:
    """All that the API knows. One lock: nothing in it waits."""

    def __init__(self):
        self.lock = threading.Condition()
        self.users = {}  # token → user id; None: revoked
        self.people = {}  # user id → user
        self.refreshes = {}
        self.credentials = {}  # ("workspace", id) or ("user", id) → list
        self.workflows = {}
        self.public_keys = {}  # pairing id → key
        self.held_on_to = None  # pairing id
        self.held = set()
        self.answers = []
        self.pads = {}
        self.calls = []

    def call(self, method, target, authorization, body):
        """One call of the API: status, fields, body."""
        url = urllib.parse.urlsplit(target)
        path = url.path[4:] if url.path.startswith("/api/") else url.path
        query = dict(urllib.parse.parse_qsl(url.query))
        with self.lock:
            self.calls.append(
                {
                    "method": method,
                    "path": path,
                    "query": query,
                    "authorization": authorization,
                    "body": body,
                }
            )
            self.lock.notify_all()
            while any(part in path for part in self.held):
                self.lock.wait()
            for answer in self.answers:
                if answer["path"] in path:
                    answer["count"] -= 1
                    if answer["count"] <= 0:
                        self.answers.remove(answer)
                    return answer["status"], [], answer.get("body", "")
            status, fields, answer = self.obey(method, path, query, authorization, body)
            if isinstance(answer, dict):
                for part, size in self.pads.items():
                    if part in path:
                        answer = {**answer, "padding": "x" * size}
                answer = json.dumps(answer)
            return status, fields, answer

    def obey(self, method, path, query, authorization, body):
        if (method, path) == ("POST", "/oauth/access_token"):
            return self.refresh(dict(urllib.parse.parse_qsl(body)))
        scheme, _, token = (authorization or "").partition(" ")
        user = self.people.get(self.users.get(token)) if scheme == "Bearer" else None
        if user is None:
            return 401, [], ""
        parts = path.strip("/").split("/")
        if method == "GET" and path == "/user-info":
            shown = {key: value for key, value in user.items() if key != "workspaces"}
            return 200, [], {"user": shown}
        owner = ("user", user["id"])
        if "workspaceId" in query:
            owner = ("workspace", int(query["workspaceId"]))
            if owner[1] not in user["workspaces"]:
                return 403, [], {"message": "not a member"}
        if method == "GET" and path == "/credentials":
            listed = [self.listed(entry) for entry in self.credentials.get(owner, [])]
            return 200, [], {"credentials": listed}
        if method == "GET" and len(parts) == 3 and parts[::2] == ["credentials", "keys"]:
            return self.keys(owner, parts[1], query.get("pairingId"))
        if method == "GET" and parts[0] == "workflow" and len(parts) in (2, 3):
            workflow = self.workflows.get(parts[1])
            if workflow is None or workflow.get("workspace") != (
                owner[1] if owner[0] == "workspace" else None
            ):
                return 404, [], {"message": "no such workflow"}
            if len(parts) == 2:
                return 200, [], {"workflow": {"id": parts[1], "status": workflow["status"]}}
            if parts[2] == "launch":
                return 200, [], {"launch": {"computeEnv": workflow.get("computeEnv")}}
        return 404, [], {"message": f"there is no {method} {path}"}

    def refresh(self, form):
        known = self.refreshes.get(form.get("refresh_token"))
        if known is None or form.get("grant_type") != "refresh_token":
            return 401, [], ""
        if "status" in known:
            return known["status"], [], ""
        cookies = known.get("cookies", "both")
        attributes = "; Path=/; Secure; HttpOnly; Max-Age=3600"
        fields = [("Set-Cookie", f"theme=dark{attributes}")]
        if cookies in ("both", "jwt"):
            fields.append(("Set-Cookie", f"JWT={known['token']}{attributes}"))
        if cookies == "both" and known.get("next"):
            fields.append(("Set-Cookie", f"JWT_REFRESH_TOKEN={known['next']}{attributes}"))
        return 200, fields, ""

    @staticmethod
    def listed(entry):
        """As the list shows it: without secrets."""
        provider = entry.get("provider", "container-reg")
        keys = {"discriminator": provider, "password": None}
        if provider == "container-reg":
            keys["registry"] = entry.get("registry")
            keys["userName"] = entry.get("userName")
        return {
            "keys": keys,
            "id": entry["id"],
            "name": entry.get("name", entry["id"]),
            "provider": provider,
            "status": entry.get("status", "AVAILABLE"),
            "deleted": entry.get("deleted"),
        }

    def keys(self, owner, identifier, pairing_id):
        key = self.public_keys.get(self.held_on_to or pairing_id)
        if key is None:
            return 400, [], {"message": "unknown pairingId"}
        for entry in self.credentials.get(owner, []):
            if entry["id"] == identifier:
                secrets = entry.get("secrets") or {
                    "userName": entry.get("userName"),
                    "password": entry.get("password"),
                    "registry": entry.get("registry"),
                    "discriminator": entry.get("provider", "container-reg"),
                }
                return 200, [], {"keys": encrypt(key, json.dumps(secrets))}
        return 404, [], {"message": "no such credentials"}


packet_keys = []


def encrypt(public_key, text):
    session_key = secrets.token_hex(8).encode()
    packet_keys.append(session_key.decode())
    padder = PKCS7(128).padder()
    padded = padder.update(text.encode()) + padder.finalize()
    cipher = Cipher(algorithms.AES(session_key), modes.ECB()).encryptor()
    content = cipher.update(padded) + cipher.finalize()
    key = load_der_public_key(base64.b64decode(public_key))
    wrapped = key.encrypt(session_key, rsa_padding.PKCS1v15())
    return "\\".join(["1", "P", base64.b64encode(wrapped).decode(), base64.b64encode(content).decode()])


class Session:
    """One pairing socket, opened again and again."""

    NORMAL = {"batch": 0, "late": 0, "fragment": 0, "swallow": 0, "cut": 0, "noise": False}

    def __init__(self, pairer, identifier, order):
        self.pairer = pairer
        self.order = order
        self.socket = None
        self.waiting = []
        self.behaviour = dict(self.NORMAL)
        self.stays = False
        self.told = {
            "id": identifier,
            "endpoint": order["endpoint"],
            "state": "connecting",
            "opened": 0,
            "pairingId": None,
            "publicKey": None,
            "closeCode": None,
            "refused": 0,
            "refusedStatus": None,
            "heartbeats": 0,
            "requests": 0,
        }

    async def run(self):
        order = self.order
        endpoint = urllib.parse.quote(order["endpoint"], safe="")
        service, token = order.get("service", "tower"), order.get("token", "license")
        url = f"{order['url']}/pairing/{service}/token/{token}?endpoint={endpoint}"
        context = None
        if order["url"].startswith("wss:"):
            context = ssl.create_default_context(cafile=order["ca"])
        while not self.stays:
            self.told.update(state="connecting", pairingId=None, publicKey=None)
            try:
                async with websockets.connect(
                    url, ssl=context, max_size=None, ping_interval=None, open_timeout=60
                ) as socket:
                    self.socket = socket
                    self.waiting = []
                    self.told["opened"] += 1
                    self.told["state"] = "open"
                    async for message in socket:
                        await self.take(json.loads(message))
            except websockets.InvalidStatusCode as error:
                self.told["refused"] += 1
                self.told["refusedStatus"] = error.status_code
            except (OSError, websockets.WebSocketException, asyncio.TimeoutError) as error:
                print(f"session {self.told['id']}: {error!r}", flush=True)
            if self.socket is not None:
                self.told["closeCode"] = self.socket.close_code
            self.socket = None
            if not order.get("reconnect", True):
                break
            await asyncio.sleep(0.05)
        self.told["state"] = "ended"

    async def take(self, message):
        kind = message["@type"]
        if kind == "pairing-response":
            self.told["pairingId"] = message["pairingId"]
            self.told["publicKey"] = message["publicKey"]
            with self.pairer.platform.lock:
                self.pairer.platform.public_keys[message["pairingId"]] = message["publicKey"]
        elif kind == "pairing-heartbeat":
            self.told["heartbeats"] += 1
        elif kind == "proxy-http-request":
            self.told["requests"] += 1
            behaviour = self.behaviour
            if behaviour["cut"] > 0:
                behaviour["cut"] -= 1
                self.socket.transport.abort()
            elif behaviour["swallow"] > 0:
                behaviour["swallow"] -= 1
            elif behaviour["batch"] > 0:
                self.waiting.append(message)
                if len(self.waiting) >= behaviour["batch"]:
                    batch, self.waiting = self.waiting[::-1], []
                    for one in batch:
                        await self.answer(self.socket, one)
            else:
                asyncio.create_task(self.answer(self.socket, message))

    async def answer(self, socket, message):
        loop = asyncio.get_running_loop()
        status, fields, body = await loop.run_in_executor(self.pairer.workers, self.perform, message)
        headers = collections.defaultdict(list)
        for name, value in fields:
            headers[name.lower()].append(value)
        answer = {
            "headers": headers,
            "status": status,
            "@type": "proxy-http-response",
            "body": body,
            "msgId": message["msgId"],
        }
        text = json.dumps(answer)
        behaviour = self.behaviour
        if behaviour["late"]:
            await asyncio.sleep(behaviour["late"])
        try:
            if behaviour["noise"]:
                await socket.send("{not json")
                await socket.send('{"@type":"of-tomorrow","msgId":"1"}')
                await socket.send('{"@type":"proxy-http-response","msgId":"ffffffffffff","status":200}')
            if behaviour["fragment"]:
                size = behaviour["fragment"]
                await socket.send([text[at : at + size] for at in range(0, len(text), size)])
            else:
                await socket.send(text)
        except websockets.ConnectionClosed:
            pass

    def perform(self, message):
        """Sends the request to our own API, whatever the endpoint's address is."""
        target = message["uri"].removeprefix(self.order["endpoint"].rstrip("/"))
        connection = self.pairer.connect()
        headers = {name: ", ".join(values) for name, values in message.get("headers", {}).items()}
        if "auth" in message:
            headers["Authorization"] = message["auth"]
        connection.request(message["method"], target, message.get("body"), headers)
        response = connection.getresponse()
        answer = response.status, response.getheaders(), response.read().decode()
        connection.close()
        return answer


class Pairer:
    """The sessions, on a loop of their own."""

    def __init__(self, platform, connect):
        self.platform = platform
        self.connect = connect
        self.sessions = []
        self.workers = concurrent.futures.ThreadPoolExecutor(64)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def now(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    async def pair(self, order):
        for _ in range(order.get("sessions", 1)):
            session = Session(self, len(self.sessions), order)
            self.sessions.append(session)
            session.task = asyncio.create_task(session.run())

    async def told(self):
        return [session.told for session in self.sessions]

    async def act(self, action, order):
        for session in self.sessions:
            if order.get("id") not in (None, session.told["id"]):
                continue
            if action == "behave":
                wanted = {key: value for key, value in order.items() if key != "id"}
                session.behaviour = {**Session.NORMAL, **wanted}
                continue
            if action == "close" and order.get("stay"):
                session.stays = True
            if session.socket is not None:
                try:
                    await self.send(session.socket, action, order)
                except websockets.ConnectionClosed:
                    # It has just ended, which is for the test to see in /sessions.
                    pass

    @staticmethod
    async def send(socket, action, order):
        if action == "heartbeat":
            beat = {"@type": "pairing-heartbeat", "msgId": uuid.uuid4().hex[:12]}
            await socket.send(json.dumps(beat))
        elif action == "close":
            await socket.close()
        elif action == "drop":
            socket.transport.abort()
        elif "binary" in order:
            await socket.send(base64.b64decode(order["binary"]))
        else:
            await socket.send(order["pieces"] if "pieces" in order else order["text"])


def control(platform, pairer, method, path, order):
    """One order of a test. `None`: there is no such order."""
    if method == "GET":
        if path == "/sessions":
            return pairer.now(pairer.told())
        with platform.lock:
            if path == "/calls":
                return list(platform.calls)
            if path == "/counts":
                counts = collections.Counter(
                    f"{call['method']} {call['path']}" for call in platform.calls
                )
                return dict(counts)
            if path == "/packet-keys":
                return list(packet_keys)
        return None
    if path == "/pair":
        pairer.now(pairer.pair(order))
        return {}
    if path[1:] in ("heartbeat", "close", "drop", "send", "behave"):
        pairer.now(pairer.act(path[1:], order))
        return {}
    with platform.lock:
        if path == "/user":
            identifier = order["id"]
            known = platform.people.get(identifier, {"workspaces": []})
            platform.people[identifier] = {
                "id": identifier,
                "userName": order.get("userName", known.get("userName", f"user-{identifier}")),
                "email": order.get("email", known.get("email", f"user-{identifier}@example.com")),
                "workspaces": order.get("workspaces", known["workspaces"]),
            }
            platform.users[order["token"]] = identifier
        elif path == "/revoke":
            platform.users[order["token"]] = None
        elif path == "/refresh":
            platform.refreshes[order["refresh"]] = order
        elif path == "/credentials":
            workspace = order.get("workspace")
            owner = ("user", order.get("user")) if workspace is None else ("workspace", workspace)
            platform.credentials[owner] = order["list"]
        elif path == "/workflow":
            platform.workflows[order["id"]] = {"status": "RUNNING", **order}
        elif path == "/key":
            platform.held_on_to = order["pairingId"]
        elif path == "/hold":
            platform.held.add(order["path"])
        elif path == "/release":
            platform.held.discard(order["path"])
            platform.lock.notify_all()
        elif path == "/answer":
            platform.answers.append({"count": 1, **order})
        elif path == "/pad":
            platform.pads[order["path"]] = order["bytes"]
        elif path == "/forget":
            platform.calls.clear()
        else:
            return None
    return {}


def server(port, answer, context=None):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Head and body of an answer go in one piece.
        wbufsize = -1

        def do_GET(self):
            size = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(size).decode()
            status, fields, text = answer(
                self.command, self.path, self.headers.get("Authorization"), body
            )
            content = text.encode()
            self.send_response(status)
            for name, value in fields:
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 512

    running = Server(("127.0.0.1", port), Handler)
    if context is not None:
        running.socket = context.wrap_socket(running.socket, server_side=True)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    return running.server_address[1]


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--api", type=int, default=0)
    arguments.add_argument("--control", type=int, default=0)
    arguments.add_argument("--cert")
    arguments.add_argument("--key")
    arguments = arguments.parse_args()
    platform = Platform()
    context = None
    if arguments.cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments.cert, arguments.key)
    api = server(arguments.api, platform.call, context)

    def connect():
        if context is None:
            return http.client.HTTPConnection("127.0.0.1", api)
        unchecked = ssl._create_unverified_context()
        return http.client.HTTPSConnection("127.0.0.1", api, context=unchecked)

    pairer = Pairer(platform, connect)

    def controlled(method, path, _authorization, body):
        try:
            answer = control(platform, pairer, method, path, json.loads(body or "{}"))
        except Exception as error:  # the test that gave the order is to see it
            return 400, [], json.dumps({"error": repr(error)})
        if answer is None:
            return 400, [], json.dumps({"error": f"unknown: {method} {path}"})
        return 200, [], json.dumps(answer)

    port = server(arguments.control, controlled)
    print(f"listening api=127.0.0.1:{api} control=127.0.0.1:{port}", flush=True)
    threading.Event().wait()


main()
