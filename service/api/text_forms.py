"""Texts of which requests ask for a form: the document has it as a pattern, whoever sends another is told in words."""

from __future__ import annotations

import re
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class TextForm:
    """An annotation of `str`. `pattern` is what the whole text must fit; `words` go on after the name of the field.

    Pydantic's own check tells a client the pattern and nothing else.
    """

    def __init__(self, pattern: str, words: str) -> None:
        self.pattern: Final = pattern
        self.words: Final = words
        self._fits: Final = re.compile(pattern).fullmatch

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^{self.pattern}$"}

    def _check(self, text: str) -> str:
        if not self._fits(text):
            raise PydanticCustomError("text_form", "{words}", {"words": self.words})
        return text


#: No database holds that character in a text.
NO_NUL: Final = TextForm("[^\\u0000]*", "must not contain U+0000")
#: Where a page of things with ids begins.
PAGE_CURSOR: Final = TextForm("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "must be the `next` of the page before")
