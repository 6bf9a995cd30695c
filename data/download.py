"""Downloads public data files and checks their sha256.

    python -m data.download NAME --to DIR [--from DIR]

NAME is gsm8k or word-problems, and for evaluation deepseek-math-eval, agieval, mgsm, bbh,
humaneval or mbpp (docs/data.md).

With `--from` the files come from a local folder, under the names that they have here or in their
repository, and are checked in the same way. Files that are present and correct are kept. A download
that broke continues where it stopped.
"""

import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from data.io import CommandParser, InputError, run_cli

# Each repository is fixed at a commit, so that the files cannot change.
_GITHUB = "https://raw.githubusercontent.com"
_GSM8K = (
    f"{_GITHUB}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/"
    "grade_school_math/data/"
)
_SVAMP = f"{_GITHUB}/arkilpatel/SVAMP/689d7ccac74b9983a2ac7cc3b264f441b99e7c53/"


@dataclass(frozen=True)
class Source:
    url: str
    sha256: str


# The folders of the sets whose files keep their names. Their checksums are in download.sha256, in
# the format of sha256sum -c.
_FOLDERS = {
    "deepseek-math-eval": "deepseek-ai/DeepSeek-Math/b8b0f8ce093d80bf8e9a641e44142f06d092c305/"
    "evaluation/datasets/",
    "agieval": "microsoft/AGIEval/b1187aa0bf0e14125cb9a6c58f25288a4e272e64/data/v1/",
    "mgsm": "google-research/url-nlp/452a21ad3dae5668c06ceeac21ff073e1e40f9be/mgsm/",
    "bbh": "suzgunmirac/BIG-Bench-Hard/9ee07bd481feebf959a6b59d61ea57bdcf30964d/",
    "humaneval": "openai/human-eval/6d43fb980f9fee3c892a914eda09951f772ad10d/data/",
    "mbpp": "deepseek-ai/DeepSeek-Coder/2f9fd85927c669dae3c0fbb2d607274023af243e/"
    "Evaluation/MBPP/data/",
}


def _listed() -> dict[str, dict[str, Source]]:
    files: dict[str, dict[str, Source]] = {name: {} for name in _FOLDERS}
    for line in Path(__file__).with_suffix(".sha256").read_text().splitlines():
        digest, path = line.split()
        name, _, file = path.partition("/")
        files[name][file] = Source(f"{_GITHUB}/{_FOLDERS[name]}{file}", digest)
    return files


FILES: dict[str, dict[str, Source]] = {  # data set -> file name -> its source
    "gsm8k": {
        "train.jsonl": Source(
            _GSM8K + "train.jsonl",
            "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        ),
        "test.jsonl": Source(
            _GSM8K + "test.jsonl",
            "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        ),
    },
    "word-problems": {
        "mawps_asdiv_train.csv": Source(
            _SVAMP + "data/mawps-asdiv-a_svamp/train.csv",
            "c761cdc6390a67a285c6c346a2931f61bc8f47430eceaeb123cc3d0263efa821",
        ),
        "mawps_fold0.csv": Source(
            _SVAMP + "data/cv_mawps/fold0/dev.csv",
            "bad59cff796b01a87363ea970f1fa80c15f56ff5f4388143aadbdc3feaf5f990",
        ),
        "mawps_fold1.csv": Source(
            _SVAMP + "data/cv_mawps/fold1/dev.csv",
            "31362cb8741f9fc11b470b224478902ae27ab762bdd82bcb08a9c945d5947422",
        ),
        "mawps_fold2.csv": Source(
            _SVAMP + "data/cv_mawps/fold2/dev.csv",
            "fae4f08a24a23123612ca5bb960e4f9aa7202c856344a59ab7adea424dfc670d",
        ),
        "mawps_fold3.csv": Source(
            _SVAMP + "data/cv_mawps/fold3/dev.csv",
            "5ac76e5559cdde0aa8bcac77eb9af46b9b0230f00661ad0257dbd58a1567a323",
        ),
        "mawps_fold4.csv": Source(
            _SVAMP + "data/cv_mawps/fold4/dev.csv",
            "1bb9164e6ba93fdc1bffddd8544c20cddc3c195a299b0b6c6893c2a760c3434b",
        ),
        "SVAMP.json": Source(
            _SVAMP + "SVAMP.json",
            "5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e",
        ),
    },
    **_listed(),
}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(url: str, part: Path, timeout: float) -> None:
    """Download to `part`, after the bytes that it already has. Raises InputError."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            # Status 206 sends the rest. A server without ranges sends everything with status 200.
            with open(part, "ab" if response.status == 206 else "wb") as file:
                shutil.copyfileobj(response, file)
                if response.length:  # copyfileobj does not see that the connection closed early
                    raise InputError(
                        f"{url}: the connection closed {response.length} bytes early; "
                        "run the same command again to continue"
                    )
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send: the checksum decides
            return
        raise InputError(
            f"{url}: the server answered {error.code} {error.reason}; "
            "get the file elsewhere and give the folder with --from"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"{url}: cannot be reached ({reason}); "
            "check the network and run again, or give a local folder with --from"
        ) from None


def _local(folder: Path, name: str, source: Source) -> Path:
    """The file in a local folder, under its name here or under its path in the repository."""
    in_repository = source.url.split("/", 6)[-1]
    for path in (folder / name, folder / in_repository):
        if path.is_file():
            return path
    raise InputError(
        f"{folder / name}: no such file (and no {in_repository} in that folder); "
        "give the folder of the file with --from"
    )


def download(
    name: str, to: str | Path, source_folder: str | Path | None = None, timeout: float = 30.0
) -> list[Path]:
    """Put the files of a data set into the folder `to`, and return their paths.

    A file gets its name only after its sha256 was correct. Raises InputError for an unknown name, a
    failure of the network, or a wrong checksum.
    """
    if name not in FILES:
        raise InputError(f"{name!r}: unknown data set; use {', '.join(FILES)}")
    to, paths = Path(to), []
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{to}: cannot make this folder ({error.strerror}); give another --to"
        ) from None
    for file_name, source in FILES[name].items():
        path = to / file_name
        paths.append(path)
        if path.is_file() and _sha256(path) == source.sha256:
            print(f"{path}: already there")
            continue
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        if source_folder is None:
            origin = source.url
            _fetch(origin, part, timeout)
        else:
            origin = _local(Path(source_folder), file_name, source)
            shutil.copyfile(origin, part)
        if (digest := _sha256(part)) != source.sha256:
            part.unlink()
            raise InputError(
                f"{origin}: sha256 {digest[:12]}..., expected {source.sha256[:12]}...; this is not "
                "the published file: run again, or get it elsewhere and give the folder with --from"
            )
        part.replace(path)
        print(f"{path}: {path.stat().st_size} bytes, sha256 is correct")
    return paths


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m data.download", description="Download public data files."
    )
    parser.add_argument("name", metavar="NAME", help=", ".join(FILES))
    parser.add_argument("--to", required=True, metavar="DIR", help="folder to write to")
    local = "local folder to copy from, instead of a download"
    parser.add_argument("--from", dest="source_folder", metavar="DIR", help=local)
    options = parser.parse_args(arguments)
    download(options.name, options.to, options.source_folder)


if __name__ == "__main__":
    run_cli(main)
