"""Sparse layers in models of transformers: Trainer, saving and loading, generating, checkpointing, PEFT, GPT-2."""

import copy

import pytest
import torch

import efcn_sparse as es

transformers = pytest.importorskip("transformers", reason="needs transformers, a development package")
RULE = dict(density=0.25, block_shape=(8, 8))


class SparseLlama(transformers.LlamaForCausalLM):
    """Sparse where its config says so, made anew and from a file alike."""

    def __init__(self, config):
        super().__init__(config)
        es.sparsify(self, config.sparse)


def llama(**sparse):
    torch.manual_seed(0)
    sizes = dict(vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.LlamaConfig(**sizes, num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0)
    config.sparse = sparse or {"*.mlp.*": RULE}
    return SparseLlama(config)


def text(rows=4):
    return torch.randint(1, 48, (rows, 12), generator=torch.Generator().manual_seed(1))


def patterns(model):
    return {name: layer.pattern for name, layer in model.named_modules() if isinstance(layer, es.SparseLinear)}


def trained(model, folder):
    """Three steps of the Trainer."""
    options = dict(per_device_train_batch_size=4, max_steps=3, learning_rate=1e-2, report_to=[], save_strategy="no")
    arguments = transformers.TrainingArguments(folder, **options, use_cpu=True, disable_tqdm=True)
    data = [dict(input_ids=row, labels=row) for row in text(8)]
    transformers.Trainer(model=model, args=arguments, train_dataset=data).train()
    return model.eval()


def test_trained_saved_and_loaded_with_its_patterns(tmp_path):
    pytest.importorskip("accelerate", reason="the Trainer needs accelerate")
    model = llama()
    values = {name: layer.values.clone() for name, layer in model.named_modules() if isinstance(layer, es.SparseLinear)}
    before = model(text(), labels=text()).loss.item()
    trained(model, tmp_path / "run")
    assert model(text(), labels=text()).loss.item() < before
    assert all(not torch.equal(model.get_submodule(name).values, own) for name, own in values.items())
    model.save_pretrained(tmp_path / "saved")
    loaded = SparseLlama.from_pretrained(tmp_path / "saved").eval()
    with torch.device("meta"):
        blank = SparseLlama(loaded.config)
    assert patterns(loaded) == patterns(model)
    assert patterns(loaded) != {name: pattern.to("cpu") for name, pattern in patterns(blank).items()}
    torch.testing.assert_close(loaded(text()).logits, model(text()).logits, rtol=0, atol=0)
    expected = es.densify(model).generate(text()[:1], max_new_tokens=6, do_sample=False)
    assert torch.equal(loaded.generate(text()[:1], max_new_tokens=6, do_sample=False), expected)


def test_what_a_pruner_chose_is_saved_and_loaded(tmp_path):
    """With one threshold the layers keep different numbers of blocks, which the config has to say."""
    model = llama(**{"*": None})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = es.CubicSchedule(begin=0, end=2)
    pruner = es.Pruner(model, {"*.mlp.*": RULE}, schedule, optimizer, budget="global", cover=False, finish_at_end=True)
    for _ in range(3):
        model(text(), labels=text()).loss.backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    kept = patterns(model)
    assert len({pattern.nnz_blocks for pattern in kept.values()}) > 1
    model.config.sparse = {
        name: dict(density=pattern.density, block_shape=pattern.block_shape, cover=False)
        for name, pattern in kept.items()
    }
    model.save_pretrained(tmp_path)
    loaded = SparseLlama.from_pretrained(tmp_path)
    assert patterns(loaded) == kept
    torch.testing.assert_close(loaded.eval()(text()).logits, model.eval()(text()).logits, rtol=0, atol=0)


def test_gradient_checkpointing():
    model = llama().train()
    twin = copy.deepcopy(model)
    twin.activation_checkpointing_enable()
    for net in (model, twin):
        net(text(), labels=text()).loss.backward()
    assert twin.is_activation_checkpointing
    for (name, one), (_, other) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=lambda told, name=name: f"{name}: {told}")


def test_lora_beside_sparse_layers(tmp_path):
    peft = pytest.importorskip("peft", reason="needs PEFT, a development package")
    model = llama()
    start = {name: layer.values.clone() for name, layer in model.named_modules() if isinstance(layer, es.SparseLinear)}
    with pytest.raises(ValueError, match=r"Target module SparseLinear.* is not supported"):
        peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["up_proj"]))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        adapted(text(), labels=text()).loss.backward()
        optimizer.step()
    found = adapted(text()).logits
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(llama(), tmp_path)
    torch.testing.assert_close(again(text()).logits, found)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(text()).logits, found, rtol=1e-4, atol=1e-5)
    for name, values in start.items():
        assert torch.equal(merged.get_submodule(name).values, values)


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=48, n_positions=32, n_embd=32, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize("score", ["magnitude", "gradient"])
def test_gpt2_is_pruned_although_its_weights_are_transposed(score):
    model = gpt2()
    assert type(model.transformer.h[0].mlp.c_fc).__name__ == "Conv1D"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rules = {"*.mlp.*": dict(density=0.25, block_shape=(16, 8))}
    pruner = es.Pruner(model, rules, es.CubicSchedule(begin=0, end=2), optimizer, score=score)
    for _ in range(3):
        optimizer.zero_grad()
        (model(text(), labels=text()).loss + 1e-3 * pruner.group_lasso()).backward()
        optimizer.step()
        pruner.step()
    dense = model.transformer.h[0].mlp.c_fc
    expected, matrix = model(text()).logits, dense.weight.T.clone()
    moment, bias = optimizer.state[dense.weight]["exp_avg"].T.clone(), dense.bias
    pruner.finish()
    sparse = model.transformer.h[0].mlp.c_fc
    assert (type(sparse).__name__, sparse.pattern.shape, sparse.pattern.nnz_blocks) == ("SparseLinear", (128, 32), 8)
    assert sparse.bias is bias
    assert torch.equal(sparse.pattern.to_dense(sparse.values), matrix)
    assert torch.equal(sparse.pattern.to_dense(optimizer.state[sparse.values]["exp_avg"]), moment)
    torch.testing.assert_close(model(text()).logits, expected, rtol=1e-4, atol=1e-5)


def test_gpt2_learns_through_deltas():
    model, batches = gpt2(), [text()]

    def loss(net, batch):
        return net(batch, labels=batch).loss

    start, expected = loss(model, text()).item(), model(text()).logits
    deltas = es.SparseDelta.add(model, {"*.c_*": dict(density=0.25, block_shape=(16, 8))}, loss, batches)
    assert len(deltas) == 4
    assert torch.equal(model(text()).logits, expected)
    before = {name: delta.linear.weight.clone() for name, delta in deltas.items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        loss(model, text()).backward()
        optimizer.step()
    assert loss(model, text()).item() < start
    found = model(text()).logits
    for delta in deltas.values():
        delta.merge()
    torch.testing.assert_close(model(text()).logits, found, rtol=1e-4, atol=1e-5)
    for name, delta in deltas.items():
        assert not torch.equal(delta.linear.weight, before[name])
        delta.unmerge()
        assert torch.equal(delta.linear.weight, before[name])


def test_gpt2_is_sparsified_and_advised():
    model = gpt2()
    conv, x = model.transformer.h[0].attn.c_attn, torch.randn(2, 5, 32)
    advice = es.advise(model, 4, block_shapes=[(8, 8)], densities=[0.25], seconds=0)
    assert {name: layer.shape for layer in advice.layers for name in layer.names}["transformer.h.0.mlp.c_fc"] == (
        128,
        32,
    )
    assert "shared with" in advice.left["lm_head"]
    es.sparsify(model, {"*.c_attn": dict(density=1.0, block_shape=(8, 8)), "*.mlp.*": RULE})
    torch.testing.assert_close(model.transformer.h[0].attn.c_attn(x), conv(x))
    assert isinstance(model.transformer.h[0].mlp.c_fc, es.SparseLinear)


def test_flops_of_a_model_are_those_of_what_is_stored():
    from torch.utils.flop_counter import FlopCounterMode

    def flops(model):
        with FlopCounterMode(display=False) as counter:
            model(text(), labels=text()).loss.backward()
        return counter.get_total_flops()

    sparse = llama()
    less = sum(pattern.shape[0] * pattern.shape[1] - pattern.nnz for pattern in patterns(sparse).values())
    assert flops(es.densify(sparse)) - flops(sparse) == 3 * 2 * text().numel() * less


def test_t5_asks_weights_for_their_dtype_and_no_matrix_is_made(monkeypatch):
    """It does so in each call, and a matrix may be hundreds of times as much work as one row's product."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=48, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))
    sparse = es.sparsify(model, {"*.wo": RULE}, inplace=False).eval()
    expected = es.densify(sparse)(input_ids=text(), labels=text()).loss
    monkeypatch.setattr(es.BlockPattern, "to_dense", lambda *_: pytest.fail("a matrix was made"))
    torch.testing.assert_close(sparse(input_ids=text(), labels=text()).loss, expected)
