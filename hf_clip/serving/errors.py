"""What the server refuses: an error with its HTTP status, in OpenAI's form when it is sent."""

from typing import Any


class RequestError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: one line: the value, the limit and the fix.
        param: the field of the request that is at fault.
        code: one word for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(" ".join(message.split()))
        self.status, self.param, self.code = status, param, code

    @property
    def kind(self) -> str:
        if self.status in (401, 403):
            return "authentication_error" if self.status == 401 else "permission_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def content(self) -> dict[str, Any]:
        """What OpenAI's API answers: https://platform.openai.com/docs/guides/error-codes."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}
