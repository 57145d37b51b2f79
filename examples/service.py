"""A graph behind FastAPI: typed endpoints, a journal, and at most so many runs at once."""

import tempfile
import threading
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from stagegraph import Graph, Runner, fan_out, step
from stagegraph.journal import SqliteJournal
from stagegraph.service import router


class Order(BaseModel):
    items: list[str]


class Bill(BaseModel):
    cents: int


@step
async def price(item: str) -> int:
    return len(item) * 100


class Checkout(Graph[Order, Bill]):
    """Add up an order."""

    price = price

    async def flow(self, order: Order) -> Bill:
        return Bill(cents=sum(await fan_out(self.price, order.items)))


def make_app(journal: SqliteJournal) -> FastAPI:
    runner = Runner(journal=journal, max_runs=100, max_queued=100, resume_interrupted=True)
    app = FastAPI(lifespan=runner.lifespan)
    app.include_router(router(Checkout(), runner), prefix="/checkout")
    return app


def main(folder: Path) -> None:
    config = uvicorn.Config(make_app(SqliteJournal(folder / "runs.db")), port=0, log_level="warning")
    server = uvicorn.Server(config)
    listening = config.bind_socket()  # port 0 is any free one
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/checkout"
    with httpx.Client(transport=httpx.HTTPTransport(retries=5), trust_env=False) as client:
        answer = client.post(f"{url}/runs", json={"items": ["tea", "milk"]}).json()
        print(answer["status"], answer["output"])
        for line in client.get(f"{url}/runs/{answer['run_id']}/events").text.splitlines():
            if line.startswith("event: "):
                print(line.removeprefix("event: "))
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
