"""FastAPI without batching: one question at a time, on the event loop, so that only one computes at once."""

from fastapi import FastAPI
from model import PORT, Model
from pydantic import BaseModel


class Question(BaseModel):
    question: str
    choices: list[str]
    context: str | None = None


app = FastAPI()
model = Model()


@app.post("/predict")
async def predict(question: Question) -> dict:
    return model.answers([question.model_dump()])[0]


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning", access_log=False)
