"""Why a call brought no answer, in words for the person who has to mend it."""

import os
import ssl

import aiohttp

__all__ = ["connection_fault"]


def connection_fault(error: BaseException) -> str:
    """Return what an exception of aiohttp means."""
    match error:
        case TimeoutError():
            return "no answer in time"
        case aiohttp.ClientConnectorDNSError():
            return "the name of its host is not known here"
        case aiohttp.ClientConnectorCertificateError(certificate_error=ssl.SSLError() as fault):
            return f"its certificate is refused: {_tls_words(fault)}"
        case aiohttp.ClientConnectorSSLError(os_error=ssl.SSLError() as fault):
            return f"TLS failed: {_tls_words(fault)}"
        case aiohttp.ClientConnectorError(os_error=OSError(errno=int() as number)):
            return os.strerror(number).lower()
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection"
        case aiohttp.ClientResponseError() | aiohttp.ClientPayloadError():
            return "what answers speaks no HTTP; does it want https://?"
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return "this is no URL of a service"
    return type(error).__name__


def _tls_words(fault: ssl.SSLError) -> str:
    if isinstance(fault, ssl.SSLCertVerificationError):
        return fault.verify_message
    if fault.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
        return "what answers speaks no TLS; does it want http://?"
    return (fault.reason or type(fault).__name__).lower().replace("_", " ")
