"""`POST /v1/uploads`: a file of any size, from the socket to a temporary file to raw, never held in memory."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

from fastapi import APIRouter
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from health_pipeline.connections.users import UserRecord, check_time_zone
from health_pipeline.ingestion import jobs
from health_pipeline.ingestion.upload import upload
from health_pipeline.providers.base import UnreadableFileError, Window
from health_pipeline.raw.index import ConflictingUploadError, partition_of
from health_pipeline.receiver import answers
from health_pipeline.receiver.auth import Uploader
from health_pipeline.receiver.errors import RefusedError
from health_pipeline.receiver.house import House, house_of
from health_pipeline.receiver.work import accepted

#: A client that says nothing for so long is cut.
_SILENT_SECONDS = 30.0
#: Headers and fields of the form, beside the file.
_MAX_FORM_BYTES = 64 * 1024
_MAX_FIELD_BYTES = 256
_FIELDS = ("time_zone", "kind", "date_order")
_BLOCK = 1024 * 1024

PATH = "/v1/uploads"
router = APIRouter(tags=["work"])

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "The file as it is."},
                        "time_zone": {
                            "type": "string",
                            "maxLength": 64,
                            "description": "IANA zone of local times that have no offset; the person's, if not given.",
                        },
                        "kind": {
                            "type": "string",
                            "maxLength": 64,
                            "description": "Kind of file, where it is not to be found by content.",
                        },
                        "date_order": {
                            "type": "string",
                            "enum": ["dmy", "mdy"],
                            "description": "Order of the file's dates, where it is unclear.",
                        },
                    },
                }
            }
        },
    }
}


@router.post(
    PATH,
    status_code=202,
    response_model=answers.Accepted,
    responses=answers.refusals(408, 409, 413, 415, 422),
    openapi_extra=_FORM,
    summary="Upload a file",
)
async def uploads(request: Request, response: Response, who: Uploader) -> answers.Accepted:
    """The file is kept as it is, then read; the job says what became of every record."""
    house = house_of(request)
    with tempfile.TemporaryDirectory(prefix="health-pipeline-upload-") as folder:
        path = Path(folder) / "file"
        with path.open("xb") as file:
            form = await _receive(request, file, house.settings.upload_max_bytes)
        person = UserRecord(who.user_id, who.handle, who.time_zone)
        job = await run_in_threadpool(_keep, house, person, path, form)
    return accepted(response, job)


def _keep(house: House, person: UserRecord, path: Path, form: dict[str, str]) -> jobs.Job:
    """Take the file into raw and ask for the run that reads it."""
    time_zone, order = form.get("time_zone"), form.get("date_order")
    if order not in (None, "dmy", "mdy"):
        raise RefusedError(422, "invalid_request", "date_order is dmy or mdy")
    try:
        if time_zone is not None:
            check_time_zone(time_zone)
        taken = upload(
            house.warehouse,
            house.store,
            person,
            path,
            time_zone=time_zone,
            kind=form.get("kind"),
            context={"date_order": order} if order else {},
        )
    except UnreadableFileError as error:
        raise RefusedError(422, "unreadable_file", str(error)) from None
    except ConflictingUploadError as error:
        raise RefusedError(409, "conflicting_upload", str(error)) from None
    except ValueError as error:
        raise RefusedError(422, "unknown_time_zone", str(error)) from None
    engine, receipt = house.warehouse.engine, taken.receipt
    day = partition_of(engine, receipt.raw_object_id)
    return jobs.create(
        engine,
        "upload",
        taken.provider.name,
        person.user_id,
        Window(day, day),
        requested=True,
        raw_object_id=receipt.raw_object_id,
        objects_new=int(receipt.created),
    )


class _Form:
    """What a multipart parser finds: the bytes of `file` go to disk, short fields are kept."""

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self.file_bytes = 0
        self.fields: dict[str, str] = {}
        self.ended = False
        self.has_file = False
        self._header, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._field = bytearray()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._part,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _header_end(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _part(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if disposition != b"form-data" or self._name not in ("file", *_FIELDS):
            raise RefusedError(422, "invalid_request", f"the form has file, {', '.join(_FIELDS)}")
        if self._name in self.fields or (self._name == "file" and self.has_file):
            raise RefusedError(422, "invalid_request", f"{self._name} is there twice")
        self._field.clear()
        self.has_file = self.has_file or self._name == "file"

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self.file_bytes += end - start
            if self.file_bytes > self._max_bytes:
                raise too_large(self._max_bytes)
            self._file.write(memoryview(data)[start:end])
            return
        self._field.extend(data[start:end])
        if len(self._field) > _MAX_FIELD_BYTES:
            raise RefusedError(422, "invalid_request", f"{self._name} is too long")

    def _part_end(self) -> None:
        if self._name != "file":
            self.fields[self._name] = self._field.decode("utf-8", "replace")

    def _end(self) -> None:
        self.ended = True


def too_large(max_bytes: int) -> RefusedError:
    return RefusedError(413, "too_large", f"a file has at most {max_bytes} bytes")


def _boundary(request: Request, max_bytes: int) -> bytes:
    """What parts the form, of a request that may be one. Raises RefusedError."""
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if media_type != b"multipart/form-data" or not boundary:
        raise RefusedError(415, "unsupported_media_type", "send the file as multipart/form-data")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RefusedError(415, "unsupported_encoding", "send the body without compression")
    said = request.headers.get("content-length", "")
    if said.isascii() and said.isdigit() and int(said) > max_bytes + _MAX_FORM_BYTES:
        raise too_large(max_bytes)
    return boundary


async def _receive(request: Request, file: IO[bytes], max_bytes: int) -> dict[str, str]:
    """The body's file into `file`, and its fields. Raises RefusedError."""
    form = _Form(file, max_bytes)
    try:
        parser = MultipartParser(_boundary(request, max_bytes), form.callbacks())
        size = 0
        async for block in _blocks(request):
            size += len(block)
            # Disks are slow, and webhooks do not wait for them.
            await run_in_threadpool(parser.write, block)
            if size - form.file_bytes > _MAX_FORM_BYTES:
                raise too_large(max_bytes)
        parser.finalize()
    except TimeoutError:
        raise RefusedError(
            408, "too_slow", f"nothing came for {_SILENT_SECONDS:.0f} s; send it again"
        ) from None
    except FormParserError:
        form.ended = False
    if not form.ended or not form.has_file:
        raise RefusedError(422, "invalid_request", "the body is not a whole multipart form with a file")
    return {name: value for name, value in form.fields.items() if value}


async def _blocks(request: Request) -> AsyncIterator[bytes]:
    """The body in blocks worth a write. Raises TimeoutError."""
    stream, block = request.stream(), bytearray()
    while True:
        async with asyncio.timeout(_SILENT_SECONDS):
            chunk = await anext(stream, None)
        if chunk is None:
            break
        block += chunk
        if len(block) >= _BLOCK:
            yield bytes(block)
            block.clear()
    yield bytes(block)
