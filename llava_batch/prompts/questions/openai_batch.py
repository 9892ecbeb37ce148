"""Lines of an OpenAI batch file (`custom_id`, `method`, `url`, `body`) as questions.

Only what makes a question is taken: one user message with one image and text. The body's settings
(model, max_tokens, temperature …) are the run's to give; they are noted, never applied.
"""

from typing import Any

from llava_batch.errors import UsageError


def is_batch_line(fields: dict[str, Any]) -> bool:
    """Whether a JSON line has the shape of a batch request."""
    return "custom_id" in fields and isinstance(fields.get("body"), dict)


def parse_batch_line(fields: dict[str, Any], where: str, notes: set[str]) -> tuple[str, str, str]:
    """(id, image's URL or `data:` URI, text) of one request; unused settings go into `notes`.

    Raises:
        UsageError: other than one user message with one image.
    """
    body = fields["body"]
    for name in sorted(body.keys() - {"messages"}):
        notes.add(f"`{name}` in the batch file's bodies is not applied; give it as a flag")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{where}: body has no messages")
    roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
    if roles != ["user"]:
        raise UsageError(
            f"{where}: messages of {', '.join(map(str, roles))}; a question is one user message "
            "(a system text is given by --system, a dialogue by --dialogue)"
        )
    image, text = _content(messages[0].get("content"), where)
    return str(fields["custom_id"]), image, text


def _content(content: Any, where: str) -> tuple[str, str]:
    images, texts = [], []
    for part in content if isinstance(content, list) else []:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            url = part.get("image_url")
            images.append(url.get("url") if isinstance(url, dict) else url)
        else:
            raise UsageError(f"{where}: a message part of type {kind!r}; expected text, image_url")
    if len(images) != 1 or not isinstance(images[0], str) or not images[0]:
        raise UsageError(f"{where}: {len(images)} images in the message; a question has one")
    return images[0], "\n".join(texts).strip()
