"""ask.py HOST:PORT PROMPT: one request to a weft serve, as a client on some host would send it; prints the text."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "serve"))
import grpc  # noqa: E402
from weft_server import weft_pb2, weft_pb2_grpc  # noqa: E402

address, prompt = sys.argv[1:]
stub = weft_pb2_grpc.InferenceStub(grpc.insecure_channel(address))
print("".join(m.text for m in stub.Generate(weft_pb2.GenerateRequest(prompt=prompt, max_tokens=16), timeout=60)), end="")
