"""The servers that the product is compared with: nginx, a bare relay, FastAPI, LiteLLM.

Each class knows how to start one server against the mock upstream and returns where to ask it. What
cannot be had on this machine raises Missing with the reason, and the table says so.
"""

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from .processes import SERVER_CORE, end, free_port, spawn, wait_for_port
from .tools import CACHE, Load, Missing, Target, Tools, openai_body

HERE = Path(__file__).parent


class Contestant:
    """One server: started, asked, ended."""

    name = ""
    note = ""
    process: subprocess.Popen | None = None

    def start(self, tools: Tools, work: Path) -> Target:
        """Start the server and return where it is asked."""
        raise NotImplementedError

    def load(self, load: Load) -> Load:
        """Return the load this server gets: the common one, unless it could never carry it."""
        return load

    def stop(self) -> None:
        """End everything that start() started."""
        if self.process:
            end(self.process)

    def launch(
        self, command: list[str], port: int, work: Path, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> int:
        """Start the command on the server's core, wait until it listens, and return its process id."""
        log = work / f"{type(self).__name__.lower()}.log"
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        self.process = spawn(command, core=SERVER_CORE, env=environment, cwd=cwd, log=log)
        wait_for_port(port, self.process, log)
        return self.process.pid


class Nginx(Contestant):
    """nginx copies bytes: proxy_pass, one worker, no buffering, kept-alive upstream connections."""

    name = "nginx proxy_pass"
    note = "no database, no identity, copies bytes"

    def start(self, tools: Tools, work: Path) -> Target:
        """Start a private nginx with its own configuration and temporary files."""
        program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if program is None:
            raise Missing("not installed (Debian: nginx-light)")
        port, home = free_port(), work / "nginx"
        home.mkdir()
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "\n".join(f"  {kind}_temp_path {home}/{kind};" for kind in kinds)
        user = "user root;" if os.geteuid() == 0 else ""
        (home / "nginx.conf").write_text(f"""
{user}
daemon off; worker_processes 1; worker_rlimit_nofile 65536; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 16384; }}
http {{
  access_log off;
{temporary}
  upstream mock {{ server 127.0.0.1:{tools.mock_port}; keepalive 256; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 300s;
    }}
  }}
}}
""")
        arguments = ["-p", str(home), "-e", f"{home}/error.log", "-c", f"{home}/nginx.conf"]
        pid = self.launch([program, *arguments], port, work)
        return Target(port, "/v1/chat/completions", openai_body("mock"), "content", pid)


class BareRelay(Contestant):
    """uvloop, protocols, httptools and orjson, and nothing else."""

    name = "bare asyncio relay"
    note = "uvloop, protocols, httptools, orjson; no storage"

    def start(self, tools: Tools, work: Path) -> Target:
        """Start bare_relay.py with the product's own interpreter."""
        port = free_port()
        command = [sys.executable, str(HERE / "bare_relay.py"), str(port), str(tools.mock_port)]
        return Target(port, pid=self.launch(command, port, work))


class FastApi(Contestant):
    """The same app with FastAPI and a shared httpx client, under uvicorn."""

    name = "FastAPI + httpx"
    note = "shared client, uvloop, httptools, no storage"

    def start(self, tools: Tools, work: Path) -> Target:
        """Start fastapi_relay.py from its own virtual environment."""
        python = environment("fastapi", ["fastapi", "httpx", "uvicorn", "uvloop", "httptools"])
        port = free_port()
        command = [str(python), "-m", "uvicorn", "fastapi_relay:app", "--port", str(port), "--backlog", "4096"]
        command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        upstream = {"UPSTREAM": f"http://127.0.0.1:{tools.mock_port}"}
        return Target(port, pid=self.launch(command, port, work, upstream, HERE))


class LiteLlm(Contestant):
    """LiteLLM's proxy with one model and no database; it fetches nothing."""

    name = "LiteLLM proxy"
    note = "20 streams: it cannot carry 150"

    def load(self, load: Load) -> Load:
        """Return a load of at most 20 streams, which it can carry."""
        return Load(min(load.streams, 20), load.tokens, load.rate, load.ttft_ms, load.ramp_seconds)

    def start(self, tools: Tools, work: Path) -> Target:
        """Start the proxy from its own virtual environment."""
        python = environment("litellm", ["litellm[proxy]"])
        port, config = free_port(), work / "litellm.yaml"
        config.write_text(f"""
model_list:
  - model_name: mock
    litellm_params:
      model: openai/mock
      api_base: http://127.0.0.1:{tools.mock_port}/v1
      api_key: none
""")
        command = [str(python.parent / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
        command += ["--port", str(port), "--num_workers", "1", "--telemetry", "False"]
        quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "DO_NOT_TRACK": "1"}
        key = "sk-" + secrets.token_hex(16)  # it refuses to start without one
        pid = self.launch(command, port, work, {**quiet, "LITELLM_MASTER_KEY": key})
        headers = [f"Authorization: Bearer {key}"]
        return Target(port, "/v1/chat/completions", openai_body("mock"), "content", pid, headers=lambda: headers)


def environment(name: str, packages: list[str]) -> Path:
    """Return the interpreter of a virtual environment that has these packages, made when it is missing."""
    home = CACHE / name
    python, ready = home / "bin" / "python", home / "ready"
    if not ready.exists():
        print(f"making benchmarks/.cache/{name} with {', '.join(packages)} …", file=sys.stderr, flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, capture_output=True)
            subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True, capture_output=True)
        except subprocess.CalledProcessError as failure:
            raise Missing(f"not installed: {failure.stderr.decode()[-200:].strip()}") from failure
        ready.touch()
    return python
