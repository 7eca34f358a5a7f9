"""dolma's `tokens` command. Its tokenizers library (0.19) needs merges as "a b" instead of pairs.

dolma.py INPUT.jsonl.gz OUT TOKENIZER_FOLDER WORKERS
"""

import json
import sys
from pathlib import Path

from dolma.cli.__main__ import main

if __name__ == "__main__":
    source, out, folder, workers = sys.argv[1:]
    tokenizer = json.loads((Path(folder) / "tokenizer.json").read_text())
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
    Path(out).mkdir(parents=True, exist_ok=True)
    old = Path(out) / "tokenizer.json"
    old.write_text(json.dumps(tokenizer))
    main([
        "tokens",
        "--documents", source,
        "--destination", f"{out}/ids",
        "--tokenizer.name_or_path", str(old),
        "--tokenizer.eos_token_id", "50256",
        "--processes", workers,
        "--dtype", "uint16",
        "--fields.id_field_name", "meta.id",
        "--seed", "0",
    ])  # fmt: skip
