"""GGUF files, llama.cpp's format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), without torch.

    with GgufFile(path) as file:            # metadata and tensors, everything checked against the file first
        file.values("blk.0.attn_q.weight")  # dequantised
    write_model_folder(path, out)           # the model as a Hugging Face folder, tokenizer rebuilt

`table.py` holds the architectures, `architectures.py` what a row can say, `lookup.py` finds it; `configs_in.py` and
`configs_out.py` the hyperparameters; `vocabulary_in.py` and `vocabulary_out.py` the tokenizers. Writing a model's
tensors is the merge engine's part (`evomerge_merging.export.gguf`).
"""
