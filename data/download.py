"""Public data files, checked by their sha256.

    python -m data.download NAME --to DIR [--from DIR]

NAME: gsm8k, word-problems; for evaluation deepseek-math-eval, agieval, mgsm, bbh, humaneval, mbpp (docs/data.md).

`--from` takes the files from a local folder, under the names they have here or in their repository, with the same
check. Files that are there and right are kept; a broken download goes on where it stopped.
"""

import argparse
import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from data import InputError, run_cli

# Each repository at one commit, so that the files cannot change under their checksums.
_GSM8K = ("https://raw.githubusercontent.com/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/"
          "grade_school_math/data/")
_EVALUATION = ("https://raw.githubusercontent.com/deepseek-ai/DeepSeek-Math/b8b0f8ce093d80bf8e9a641e44142f06d092c305/"
               "evaluation/datasets/")
_AGIEVAL = "https://raw.githubusercontent.com/microsoft/AGIEval/b1187aa0bf0e14125cb9a6c58f25288a4e272e64/data/v1/"
_MGSM = "https://raw.githubusercontent.com/google-research/url-nlp/452a21ad3dae5668c06ceeac21ff073e1e40f9be/mgsm/"
_BBH = "https://raw.githubusercontent.com/suzgunmirac/BIG-Bench-Hard/9ee07bd481feebf959a6b59d61ea57bdcf30964d/"
_HUMANEVAL = "https://raw.githubusercontent.com/openai/human-eval/6d43fb980f9fee3c892a914eda09951f772ad10d/data/"
_MBPP = ("https://raw.githubusercontent.com/deepseek-ai/DeepSeek-Coder/2f9fd85927c669dae3c0fbb2d607274023af243e/"
         "Evaluation/MBPP/data/")
_SVAMP = "https://raw.githubusercontent.com/arkilpatel/SVAMP/689d7ccac74b9983a2ac7cc3b264f441b99e7c53/"


@dataclass(frozen=True)
class Source:
    url: str
    sha256: str


def _sources(url: str, sums: str) -> dict[str, Source]:
    """Files under their names in a repository's folder, from lines as sha256sum writes them."""
    return {name: Source(url + name, digest) for digest, name in map(str.split, sums.strip().splitlines())}


FILES: dict[str, dict[str, Source]] = {  # data set -> file name -> where it is from
    "gsm8k": {
        "train.jsonl": Source(
            _GSM8K + "train.jsonl", "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"),
        "test.jsonl": Source(
            _GSM8K + "test.jsonl", "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),
    },
    "word-problems": {
        "mawps_asdiv_train.csv": Source(
            _SVAMP + "data/mawps-asdiv-a_svamp/train.csv",
            "c761cdc6390a67a285c6c346a2931f61bc8f47430eceaeb123cc3d0263efa821"),
        "mawps_fold0.csv": Source(
            _SVAMP + "data/cv_mawps/fold0/dev.csv", "bad59cff796b01a87363ea970f1fa80c15f56ff5f4388143aadbdc3feaf5f990"),
        "mawps_fold1.csv": Source(
            _SVAMP + "data/cv_mawps/fold1/dev.csv", "31362cb8741f9fc11b470b224478902ae27ab762bdd82bcb08a9c945d5947422"),
        "mawps_fold2.csv": Source(
            _SVAMP + "data/cv_mawps/fold2/dev.csv", "fae4f08a24a23123612ca5bb960e4f9aa7202c856344a59ab7adea424dfc670d"),
        "mawps_fold3.csv": Source(
            _SVAMP + "data/cv_mawps/fold3/dev.csv", "5ac76e5559cdde0aa8bcac77eb9af46b9b0230f00661ad0257dbd58a1567a323"),
        "mawps_fold4.csv": Source(
            _SVAMP + "data/cv_mawps/fold4/dev.csv", "1bb9164e6ba93fdc1bffddd8544c20cddc3c195a299b0b6c6893c2a760c3434b"),
        "SVAMP.json": Source(
            _SVAMP + "SVAMP.json", "5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e"),
    },
    "deepseek-math-eval": _sources(_EVALUATION, """
        fd32e8e549626b0dcce350eec7bbace9c463ddbcfa1c0303ba5abe9122450839  gsm8k/test.jsonl
        96720a1dc496ea72f80db55250290cf9c48e95b657ac2183b7deb1dc4627351f  sat/test.jsonl
        095ba49696fcd401474a5014e2fae5e6b0b8ec1939d8dded0343fcbdb0bf1a9b  ocw/test.jsonl
        1c918d1df6de635a0202c989705c34f19b0c4ad858cbdb27135cdfc7fd44f14a  mmlu_stem/test.jsonl
        165c3b6753e8a8786183c27b9af7b7590d54dca4d0136edadb24d684c95bb50d  mgsm_zh/mgsm_zh.jsonl
        cabe17c127c3227912b3384f4755e180f3aa0d9e5865677e7e5e223439bf15eb  cmath/test.jsonl
        088675c147794970a3ed25c7147a3bbc59715d6813837d5f483f46dcb1b5008d  agieval/gaokao-mathcloze.jsonl
        d246f12752d121289ef55cbf1bcf954243cefb65d110f71d09358e24065c808f  agieval/gaokao-mathqa.jsonl
        6091dd4c4e64a514fb2cba3a99e86678f791e9f5cbd9810db619522e81603ed5  minif2f/validation.jsonl
        0b1ffa866b2d8eaff9ac00d8c4042bae915e2d153f3a600cf2c3b05193b0daef  minif2f/test.jsonl
        """),
    "agieval": _sources(_AGIEVAL, """
        9cde4c0522b6196852a5562db6e72bf8817b4802822db0fc10013d1becdab3c3  sat-math.jsonl
        de54f7f77ead25d18dcc3c9c47313c03df864e344df5a08724e8fe0a93742987  aqua-rat.jsonl
        """),
    "mgsm": _sources(_MGSM, """
        50021d0f28cc957edcb44e7806425b1c7fbd648ddcb9e0a8ec689d10e57d40fa  mgsm_en.tsv
        b2fa63151022370a0de1f4211c8c284eae74b0f5a3b003b1d5982c0d4a73f661  mgsm_zh.tsv
        """),
    "bbh": _sources(_BBH, """
        ea6c754ec005e2d3f2d085d349a740f593b5764f32ea4638ffed4cfc0061b12a  bbh/boolean_expressions.json
        6e8bca44dd402008ed41c07a3d0a1d5e7b03db7001a7e002fcdf4c60985ea081  bbh/causal_judgement.json
        0148d4ac5fca05b2f82373e5fef7208e15363b9c6079493034d77b3dab496bf5  bbh/date_understanding.json
        cf06df9ebf911b883671cb1b35d3fbd1a1c306b19b9e9a012407e596c85fe8c6  bbh/disambiguation_qa.json
        3f9badedf15c2be1ce53d94fdf016299bb30ba231ef087ab9f51a7ed6d0bdc25  bbh/dyck_languages.json
        4c1adb664821157faade1d4153685403afcc02648f3c180a608a18f17f589629  bbh/formal_fallacies.json
        07be68a124420caa2ebc0b2c858ad79fc55c5c8806170e496e1e17ebfb11f31c  bbh/geometric_shapes.json
        b6d7f55c75f5d02f2987a4f3123802dfa093872089a56a334144aae8a7264fdc  bbh/hyperbaton.json
        d2df31394b903b7f0e085d42a69572a092987856eac076799017d70ef266fa8f  bbh/logical_deduction_five_objects.json
        2896c7e3482eea318dd37bcc370d24ec3cc91e8374c1784287b5dbd38a529e33  bbh/logical_deduction_seven_objects.json
        e590fae72e3a6041fbd23bd8ff6b74baf44ca563f6ba40a041c55e7b867c1681  bbh/logical_deduction_three_objects.json
        a8b53a87ee21a865b7248e694f388a9b8f7cf6b839b11d44796a2dd3fc088983  bbh/movie_recommendation.json
        c9d5a6433c9b78256422a15c78463949c8bec8d85607aa28b52d7234ad4a8595  bbh/multistep_arithmetic_two.json
        b7944dfd3c81da5c4815bd75b00d6fa3c64140823498e78ed496f4c3d36f7f0d  bbh/navigate.json
        8acef14dbbdd40d2326ef7755750b6b5fe919fef06276af1bab3f1c297f022ff  bbh/object_counting.json
        bb87ee449698eee51215e025a453b1bcb2f5e6589c2063b2c79e68b8f0655228  bbh/penguins_in_a_table.json
        0a8850cf95166020fce7a78244026ceedd7ea839302471512b4f8744e85a6a49  bbh/reasoning_about_colored_objects.json
        b6f723aef2bafdd4c7bfc3c7e0329c7e8a8279391a609969c8ed76c9319f5f7f  bbh/ruin_names.json
        becf3eb8dd53c821a555ecd5c1334ecd93eb25f980e63be963c518e7138de5da  bbh/salient_translation_error_detection.json
        54a0661fe2de06167645a4965e6bcf963c4ba307e76262a7c750998b0e3d0d0e  bbh/snarks.json
        63ca262858f6176864515cd8cf53cdaa40839ebecc155b726d77930855d167bf  bbh/sports_understanding.json
        92a1189faaa84aacc4c405aaa13f13f48c2992eb884772eedb622505252baef5  bbh/temporal_sequences.json
        2063a46a4fb484236ed4310523606543a3e1dd4a4dc34eda65d407910ece25a5  bbh/tracking_shuffled_objects_five_objects.json
        b59fd05b850c37cf57cb514ae1e6975c00b1638ade2291722056b2af3c54084d  bbh/tracking_shuffled_objects_seven_objects.json
        546cc7bf10c6a01a6a4c17ae28a4966485f21f29fd5d111f37858ec78e354f6b  bbh/tracking_shuffled_objects_three_objects.json
        3e60323f8514a107fdb4edf35f8832a9171c5a09c0eaa47823559de905e8ab8b  bbh/web_of_lies.json
        2a6132d2c99f00d0d2eb1113ac6b4a918bd969d863c48749210d969713db8d43  bbh/word_sorting.json
        685affba97425cdf3549d5d313ba876caed2fa7c8a4cf1ea7549faf22179609d  cot-prompts/boolean_expressions.txt
        14377e36cccb084b7d0fe73988d08696f7675d712b02d3ae1f5f7f12c77028ea  cot-prompts/causal_judgement.txt
        a0a13c392f689a1828f5f6ffb9dee3d44483794490da5d92f0e2a723787b1cfb  cot-prompts/date_understanding.txt
        794fd259297972a4c963a5d13a84dc221edde460de27fa5d8fd64299a2001597  cot-prompts/disambiguation_qa.txt
        b0836603007ec659ed685458647fb6d7543543304e7aca909b995d0c3aff22b2  cot-prompts/dyck_languages.txt
        10c06cc362520e9b8dddfc4861e263ff668d228a52d958dcc69f09f1d224935a  cot-prompts/formal_fallacies.txt
        f36d9893507eb518d84f388fb677dc0226c74a98873700de0b556548d65d3f76  cot-prompts/geometric_shapes.txt
        19898af91c35cb26bbdf5fdb6f6fb17e138677250332e2994005625ffb50b261  cot-prompts/hyperbaton.txt
        4ed65246c0c1c4b0b4053d784181892b842bce19cf4358c976f34b1a434ef034  cot-prompts/logical_deduction_five_objects.txt
        4ed65246c0c1c4b0b4053d784181892b842bce19cf4358c976f34b1a434ef034  cot-prompts/logical_deduction_seven_objects.txt
        4ed65246c0c1c4b0b4053d784181892b842bce19cf4358c976f34b1a434ef034  cot-prompts/logical_deduction_three_objects.txt
        cdf765634713b057091d541b4773dd2c998f81447b0bd8564ae70be4cdf3f5d0  cot-prompts/movie_recommendation.txt
        a546e0b7cde09037bc144ae5c32c9cf78dafdfac929ae76e2051b2dd8f3671ce  cot-prompts/multistep_arithmetic_two.txt
        dc2fd733f1867b8c79685f15b83746064534a94bf73468341c2a9dd335be22fc  cot-prompts/navigate.txt
        e51ffc03fd713a13a379a6c938a523dfc1c2f384f2a8447bd7a12d4458f18833  cot-prompts/object_counting.txt
        33be137e76c2a6af0bbacd17a8e7a92801886c0202a45e35ea9c2a88c1f26d51  cot-prompts/penguins_in_a_table.txt
        e4ea02d05b13e8ed9ccc3b0d878bc4df4c5a6fb76c65d39d48d6244f7ff0b9d5  cot-prompts/reasoning_about_colored_objects.txt
        731446c6c66bb5258677af1417b599a6a5539be6d74a5afc02cf7a716444ea54  cot-prompts/ruin_names.txt
        2c8367f75092202cc507fdbfaaf037b1c1eed38e91289084439738367f0785f7  cot-prompts/salient_translation_error_detection.txt
        35084a2a0b86bc4008ab206b838c0b97dd425897dd72198137c3cefc499c0960  cot-prompts/snarks.txt
        2058a9bed717a6edb8ca2f815e88851436a4ee14c8b0d504ccf464865c6d0295  cot-prompts/sports_understanding.txt
        3e7ebf1e20abe3e219dc6514dcb7474d82db1b2c66acc733cd30af2e9e0b64b0  cot-prompts/temporal_sequences.txt
        2ef54cb2a72052adc3484a76209cb6a6535f194d677e79bcec2e2e71cf3768af  cot-prompts/tracking_shuffled_objects_five_objects.txt
        2ef54cb2a72052adc3484a76209cb6a6535f194d677e79bcec2e2e71cf3768af  cot-prompts/tracking_shuffled_objects_seven_objects.txt
        2ef54cb2a72052adc3484a76209cb6a6535f194d677e79bcec2e2e71cf3768af  cot-prompts/tracking_shuffled_objects_three_objects.txt
        c8025ca65ab7f0897c243504c863bda043d04b6e873777536743e94023c929d0  cot-prompts/web_of_lies.txt
        a2cdbcfe23abaa97b9787f7c03dbf49b1cfd0ff9e63197b7884bb5cd5a096ca6  cot-prompts/word_sorting.txt
        """),
    "humaneval": _sources(_HUMANEVAL, """
        b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef  HumanEval.jsonl.gz
        """),
    "mbpp": _sources(_MBPP, """
        ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f  mbpp.jsonl
        e57e9c9999aa35128f4d0b6a486979c2c1dce4f4b8c0680bf92bc6f5f147779f  mbpp_test.jsonl
        """),
}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(url: str, part: Path, timeout: float) -> None:
    """Download to `part`, going on after the bytes it already has. Raises InputError."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            # 206 sends the rest; a server that does not know ranges sends everything with 200
            with open(part, "ab" if response.status == 206 else "wb") as file:
                shutil.copyfileobj(response, file)
                if response.length:  # copyfileobj does not see that the connection closed early
                    raise InputError(f"{url}: the connection closed {response.length} bytes early; "
                                     "run the same command again to go on")
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send: the checksum decides
            return
        raise InputError(f"{url}: the server answered {error.code} {error.reason}; get the file elsewhere and give "
                         "its folder with --from") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{url}: cannot be reached ({reason}); check the network and run again, or give a local "
                         "folder with --from") from None


def _local(folder: Path, name: str, source: Source) -> Path:
    """The file in a local folder, under its name here or its path in the repository."""
    in_repository = source.url.split("/", 6)[-1]
    candidates = [folder / name, folder / in_repository]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise InputError(f"{folder / name}: no such file (nor {in_repository} in that folder); give the folder that "
                         "holds it with --from")
    return found


def download(name: str, to: str | Path, source_folder: str | Path | None = None, timeout: float = 30.0) -> list[Path]:
    """Put the files of a data set into the folder `to`; returns their paths. Nothing is there under its name before
    its sha256 is right. Raises InputError for an unknown name, a network failure, a wrong checksum."""
    if name not in FILES:
        raise InputError(f"{name!r}: unknown data set; there are {', '.join(FILES)}")
    to, paths = Path(to), []
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{to}: cannot be made a folder ({error.strerror}); give another --to") from None
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
            raise InputError(f"{origin}: sha256 {digest[:12]}..., expected {source.sha256[:12]}...; not the published "
                             "file: run again, or get it elsewhere and give its folder with --from")
        part.replace(path)
        print(f"{path}: {path.stat().st_size} bytes, sha256 as published")
    return paths


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.download", description="Fetch public data files.")
    parser.add_argument("name", help=", ".join(FILES))
    parser.add_argument("--to", required=True, help="folder to write to")
    parser.add_argument("--from", dest="source_folder", help="local folder to copy from instead")
    options = parser.parse_args(arguments)
    download(options.name, options.to, options.source_folder)


if __name__ == "__main__":
    run_cli(main)
