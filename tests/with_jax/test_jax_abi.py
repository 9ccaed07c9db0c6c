"""XLA's binary interface as it is declared here, compared with the header that jaxlib ships."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import jax
import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"

# Ours, XLA's, and the fields of both in order.
STRUCTURES = {
    ("Extension", "XLA_FFI_Extension_Base"): ["struct_size", "type", "next"],
    ("ApiVersion", "XLA_FFI_Api_Version"): [
        "struct_size",
        ("extensions", "extension_start"),
        ("major", "major_version"),
        ("minor", "minor_version"),
    ],
    ("MetadataExtension", "XLA_FFI_Metadata_Extension"): [("base", "extension_base"), "metadata"],
    ("ErrorCreateArguments", "XLA_FFI_Error_Create_Args"): [
        "struct_size",
        ("extensions", "extension_start"),
        "message",
        ("code", "errc"),
    ],
    ("StreamGetArguments", "XLA_FFI_Stream_Get_Args"): [
        "struct_size",
        ("extensions", "extension_start"),
        ("context", "ctx"),
        "stream",
    ],
    ("Buffer", "XLA_FFI_Buffer"): [
        "struct_size",
        ("extensions", "extension_start"),
        "dtype",
        "data",
        "rank",
        "dims",
    ],
    ("Arguments", "XLA_FFI_Args"): ["struct_size", "size", "types", ("values", "args")],
    ("Results", "XLA_FFI_Rets"): ["struct_size", "size", "types", ("values", "rets")],
    ("Attributes", "XLA_FFI_Attrs"): ["struct_size", "size", "types", "names", ("values", "attrs")],
    ("ByteSpan", "XLA_FFI_ByteSpan"): [("data", "ptr"), ("size", "len")],
    ("Array", "XLA_FFI_Array"): ["dtype", "size", "data"],
    ("CallFrame", "XLA_FFI_CallFrame"): [
        "struct_size",
        ("extensions", "extension_start"),
        "api",
        ("context", "ctx"),
        "stage",
        ("arguments", "args"),
        ("results", "rets"),
        ("attributes", "attrs"),
    ],
}
# Those of which newer versions may have more fields than are declared here.
PREFIXES = {
    ("Metadata", "XLA_FFI_Metadata"): ["struct_size", "api_version", "traits"],
    ("Api", "XLA_FFI_Api"): [
        "struct_size",
        ("extensions", "extension_start"),
        "api_version",
        "internal_api",
        ("error_create", "XLA_FFI_Error_Create"),
        ("error_get_message", "XLA_FFI_Error_GetMessage"),
        ("error_destroy", "XLA_FFI_Error_Destroy"),
        ("handler_register", "XLA_FFI_Handler_Register"),
        ("stream_get", "XLA_FFI_Stream_Get"),
    ],
}
NUMBERS = {
    "api_major": "XLA_FFI_API_MAJOR",
    "error_invalid_argument": "XLA_FFI_Error_Code_INVALID_ARGUMENT",
    "error_resource_exhausted": "XLA_FFI_Error_Code_RESOURCE_EXHAUSTED",
    "error_internal": "XLA_FFI_Error_Code_INTERNAL",
    "stage_execute": "XLA_FFI_ExecutionStage_EXECUTE",
    "extension_metadata": "XLA_FFI_Extension_Metadata",
    "argument_buffer": "XLA_FFI_ArgType_BUFFER",
    "result_buffer": "XLA_FFI_RetType_BUFFER",
    "attribute_array": "XLA_FFI_AttrType_ARRAY",
} | {
    f"type_{name.lower()}": f"XLA_FFI_DataType_{name}"
    for name in [
        "PRED",
        "S8",
        "S16",
        "S32",
        "S64",
        "U8",
        "U16",
        "U32",
        "U64",
        "F16",
        "F32",
        "F64",
        "BF16",
    ]
}
# By the names of versions of the interface before 4, what later ones say.
RENAMED = {
    "XLA_FFI_Extension_Base": "XLA_FFI_InternalExtension",
    "XLA_FFI_Error_GetMessage": "XLA_FFI_Error_GetDetails",
}


def renamed():
    """Yield a line of source for each name that the header of this jaxlib has no longer."""
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text()
    known = set(re.findall(r"\w+", header))
    for before, after in RENAMED.items():
        if before not in known:
            yield f"#define {before} {after}"


def assertions():
    for (own, theirs), fields in (STRUCTURES | PREFIXES).items():
        relation = ">=" if (own, theirs) in PREFIXES else "=="
        if own != "CallFrame":  # whose last field the header's own size leaves out
            yield f"sizeof({theirs}) {relation} sizeof(fastreg::xla::{own})"
        for field in fields:
            mine, their = field if isinstance(field, tuple) else (field, field)
            member, other = f"fastreg::xla::{own}, {mine}", f"{theirs}, {their}"
            yield f"offsetof({member}) == offsetof({other})"
            yield f"sizeof(fastreg::xla::{own}::{mine}) == sizeof({theirs}::{their})"
    for mine, their in NUMBERS.items():
        yield f"int{{fastreg::xla::{mine}}} == int{{{their}}}"
    yield "fastreg::xla::least_frame_size == XLA_FFI_CallFrame_STRUCT_SIZE"
    yield "fastreg::xla::oldest_api_minor <= XLA_FFI_API_MINOR"


def compiled(tmp_path, lines):
    source = tmp_path / "compare.cpp"
    source.write_text(
        "\n".join(
            ['#include "xla/ffi/api/c_api.h"', '#include "jax/xla_ffi_abi.h"']
            + [*renamed()]
            + [f"static_assert({line});" for line in lines]
        )
    )
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no compiler here")
    command = [compiler, "-std=c++20", "-fsyntax-only", "-Wno-invalid-offsetof"]
    includes = [f"-I{CSRC}", "-isystem", jax.ffi.include_dir()]
    return subprocess.run(
        [*command, *includes, str(source)], capture_output=True, text=True, check=False
    )


def test_the_declarations_are_those_of_jaxlib(tmp_path):
    result = compiled(tmp_path, assertions())
    assert result.returncode == 0, result.stderr


def test_the_comparison_can_fail(tmp_path):
    wrong = "offsetof(fastreg::xla::Buffer, data) == offsetof(XLA_FFI_Buffer, rank)"
    assert compiled(tmp_path, [wrong]).returncode != 0
