"""Tiny random language models and their tokenizers, built here; nothing is downloaded."""

import torch

from gflow.policies.common import seeded_weights

TEXTS = ["the cat sat", "a dog ran far", "the dog sat on the cat", "far cats run"]


def word_tokenizer():
    """Byte-level BPE trained on a few words, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<end>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", mask_token="<mask>"
    )
    made.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    return made


def llama(vocabulary, seed=0, context=64, dtype=torch.float32, **settings):
    """A random two-layer Llama whose logits are far from even."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context, **settings,
    )  # fmt: skip
    return _lively(LlamaForCausalLM, config, seed).to(dtype)


def qwen(vocabulary, seed=0, context=64):
    """A random two-layer Qwen3."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=context,
    )  # fmt: skip
    return _lively(Qwen3ForCausalLM, config, seed)


def gpt2(vocabulary, seed=0, context=64):
    """A random two-layer GPT-2: positions are learned, and dropout is on by default."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=context,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return _lively(GPT2LMHeadModel, config, seed)


def bert(vocabulary, seed=0, context=64, dtype=torch.float32):
    """A random two-layer BERT: every place sees every other."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=context,
    )  # fmt: skip
    return _lively(BertForMaskedLM, config, seed).to(dtype)


def _lively(kind, config, seed):
    with seeded_weights(seed):
        model = kind(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(6)
    return model


def with_lora(model, seed=0):
    """The model with adapters on its attention, which are not zero."""
    from peft import LoraConfig, get_peft_model

    targets = ["c_attn"] if hasattr(model, "transformer") else ["q_proj", "v_proj"]
    with seeded_weights(seed):
        made = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
        with torch.no_grad():
            for name, weight in made.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.3)
    return made
