"""Has vLLM load a model folder.

    verify_vllm.py same FOLDER PROMPT OURS     OURS is what `llm-surgeon generate FOLDER --prompt PROMPT --json` said: vLLM must
                                               read as many tokens and go on with the same ones
    verify_vllm.py refused FOLDER              a per-layer folder: vLLM must refuse it, and with the folder's own code it must
                                               stop at the first block of another width

In f32, greedily, without compilation. Exits 1 where it is otherwise.
"""

import json
import sys

from vllm import LLM, SamplingParams


def load(folder: str, *, own_code: bool = False) -> LLM:
    """Loads a folder with vLLM."""
    return LLM(
        folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_batched_tokens=512,
        max_num_seqs=1,
        trust_remote_code=own_code,
    )


def same(folder: str, prompt: str, ours: dict) -> bool:
    """Says how vLLM and llm-surgeon go on, and whether with the same tokens."""
    greedy = SamplingParams(temperature=0, max_tokens=len(ours["ids"]))
    (answer,) = load(folder).generate([prompt], greedy, use_tqdm=False)
    (theirs,) = answer.outputs
    print(f"llm-surgeon: {ours['text']!r}\nvLLM:        {theirs.text!r}")
    return len(answer.prompt_token_ids) == ours["prompt_tokens"] and list(theirs.token_ids) == ours["ids"] and len(ours["ids"]) > 0


def refused(folder: str) -> bool:
    """Says with which words vLLM refuses a folder, and whether they are the known ones."""
    known = {False: "PerLayerMistralForCausalLM'] are not supported", True: "exceeds dimension size"}
    right = True
    for own_code, words in known.items():
        try:
            load(folder, own_code=own_code)
            message = "loaded"
        except Exception as error:  # whatever it is: it is shown, and its words are compared
            message = str(error)
        line = next((line for line in message.splitlines() if words in line), message).strip()
        print(f"vLLM{', with the own code' if own_code else ''}: {line[:100]}")
        right = right and words in message
    return right


def main() -> None:
    match sys.argv[1:]:
        case ["same", folder, prompt, ours]:
            right = same(folder, prompt, json.loads(ours))
        case ["refused", folder]:
            right = refused(folder)
        case _:
            sys.exit(__doc__)
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
