"""Sentences for what S3 stores answer instead of doing it, without what they say of credentials."""

import asyncio

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ParamValidationError

from lora_inspect.stores import s3
from lora_inspect.stores.s3 import S3Store, StoreRefused

SECRET = "wJalrXUtnFEMI"


def answer(code, status):
    reply = {"Error": {"Code": code, "Message": f"key {SECRET}"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(reply, "PutObject")


@pytest.fixture
def refused(monkeypatch):
    """What is said where the library raises an error, as it is or as s3fs makes an OSError of it."""

    def of(error):
        class Library:
            async def _call_s3(self, method, **arguments):
                if isinstance(error, ClientError):
                    raise PermissionError(str(error)) from error
                raise error

            def split_path(self, path):
                return (*path.split("/", 1), None)

        monkeypatch.setattr(s3, "file_system", lambda address: Library())
        with pytest.raises(StoreRefused) as raised:
            asyncio.run(S3Store("s3://b/out").ask("put_object", "s3://b/out", "write it"))
        return raised.value

    return of


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (
            answer("AccessDenied", 403),
            "AccessDenied",
            "does not allow to write it (AccessDenied); check the credentials",
        ),
        (answer("403", 403), "403", "does not allow to write it (403)"),
        (answer("NoSuchBucket", 404), "NoSuchBucket", "there is no such bucket; make it first"),
        (answer("ExpiredToken", 400), "ExpiredToken", "the credentials have expired"),
        (answer("InvalidAccessKeyId", 403), "InvalidAccessKeyId", "does not know the credentials"),
        (answer("PermanentRedirect", 301), "PermanentRedirect", "in another region"),
        (answer("InternalError", 500), "InternalError", "failed to write it (InternalError); run the command again"),
        (NoCredentialsError(), "NoCredentialsError", "there are no credentials for it"),
        (ParamValidationError(report=SECRET), "ParamValidationError", "a bucket cannot have such a name"),
        (
            EndpointConnectionError(endpoint_url=f"http://{SECRET}@h"),
            "EndpointConnectionError",
            "cannot reach the store",
        ),
        (OSError(SECRET), "OSError", "failed to write it (OSError)"),
    ],
)
def test_each_answer_has_its_sentence(error, code, sentence, refused):
    said = refused(error)
    assert said.answer == code
    assert str(said).startswith("s3://b/out: ")
    assert sentence in str(said)
    assert SECRET not in f"{said!r}{said.__cause__!r}{said.__suppress_context__ or said.__context__!r}"
