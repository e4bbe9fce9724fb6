"""What the service answers, as OpenAPI describes it."""

from pydantic import BaseModel, Field


class Guess(BaseModel):
    name: str = Field(examples=["water lily"])
    probability: float = Field(ge=0, le=1, examples=[0.93])


class Answer(BaseModel):
    guesses: list[Guess] = Field(description="likeliest first")


class Answers(BaseModel):
    version: str | None = Field(description="of the model that answered")
    sha256: str = Field(description="of the model file that answered")
    images: list[Answer] = Field(description="in the order of the files")


class ModelCard(BaseModel):
    name: str
    version: str | None = Field(description="as it was started with; null for a file loaded since")
    revision: str | None = Field(description="git commit that the model belongs to; null likewise")
    sha256: str = Field(description="of the model file")
    since: str = Field(description="when it was loaded, UTC")
    architecture: str
    image_size: int = Field(description="px, side of the square that the model sees")
    scores: dict[str, float | None] = Field(description="on validation")
    classes: list[str]


class State(BaseModel):
    status: str = Field(examples=["ok"])


class Problem(BaseModel):
    detail: str = Field(description="one line", examples=["file 1: not a JPEG, PNG or WebP image"])
