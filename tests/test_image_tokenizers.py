"""Image tokenizers against recorded numbers of the original code; pictures in and out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from unmask.errors import UserError
from unmask.models import load
from unmask.models.image_files import load_image_tokenizer
from unmask.models.magvit import DERIVED, Magvit
from unmask.models.settings import Settings

DATA = Path(__file__).parent / "data"


def reference(folder):
    return load_file(DATA / folder / "reference.safetensors")


def difference(a, b):
    return (a - b).abs().max().item()


def copy_of(folder, out, config=None):
    shutil.copytree(DATA / folder, out, ignore=shutil.ignore_patterns("reference.*", "real_*"))
    file = out / "config.json"
    settings = json.loads(file.read_text()) | (config or {})
    file.write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))
    return out


def error_of(folder):
    with pytest.raises(UserError) as caught:
        load_image_tokenizer(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------- MAGVIT-v2


def test_magvit_codes_and_pixels_equal_the_original_code():
    model, t = load_image_tokenizer(DATA / "magvitv2"), reference("magvitv2")
    assert (model.codes, model.factor, model.pixel_range) == (8192, 16, (-1.0, 1.0))
    assert difference(model.latents(t["pixels"]), t["encoder_out"]) <= 1e-5
    codes = model.encode(t["pixels"])
    assert codes.shape == (2, 4, 3)
    assert torch.equal(codes.flatten(1), t["codes"])
    assert difference(model.decode(codes), t["reconstruction"]) <= 2e-5
    square = model.encode(t["pixels_square"])
    assert torch.equal(square.flatten(1), t["codes_square"])
    assert difference(model.decode(square), t["reconstruction_square"]) <= 2e-5


def test_the_first_latent_is_the_most_significant_bit_and_zero_is_negative():
    model = load_image_tokenizer(DATA / "magvitv2")
    entries = model.entries(torch.tensor([[[0, 1], [4096, 8191]]]))
    assert torch.equal(entries, reference("magvitv2")["codebook_entry_0_1_4096_8191"])
    z = torch.full((1, 13, 1, 2), -1.0)
    z[0, 0, 0, 0], z[0, 12, 0, 1] = 1.0, 1.0
    assert model.quantise(z).tolist() == [[[4096, 1]]]
    assert model.quantise(torch.zeros(1, 13, 1, 1)).item() == 0
    every = torch.arange(8192).view(1, 64, 128)
    assert torch.equal(model.quantise(model.entries(every)), every)


def test_magvit_has_its_published_size_and_names():
    published = json.loads((DATA / "magvitv2" / "real_state_dict_shapes.json").read_text())
    shapes = {name: tuple(shape) for name, (shape, _) in published.items()}
    with torch.device("meta"):
        model = Magvit.of(Settings({}, "none"), shapes, "published")
    assert sum(p.numel() for p in model.parameters()) == 95_387_004
    assert (model.codes, model.factor) == (8192, 16)
    names = {
        f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in model.names().items() for kind in ("weight", "bias")
    }
    assert names.keys() == shapes.keys() - set(DERIVED)
    assert set(names.values()) == model.state_dict().keys()
    for theirs, ours in names.items():
        there, here = shapes[theirs], tuple(model.get_parameter(ours).shape)
        assert there == here or there == (*here, 1, 1)


# ----------------------------------------------------------------------------------------------------------- VQModel


def test_vqmodel_codes_and_pixels_equal_the_original_code():
    model, t = load_image_tokenizer(DATA / "dimoo_vqvae"), reference("dimoo_vqvae")
    assert (model.codes, model.factor, model.pixel_range) == (8192, 16, (0.0, 1.0))
    assert difference(model.latents(t["pixels_0_1"]), t["latents"]) <= 1e-5
    codes = model.encode(t["pixels_0_1"])
    assert torch.equal(codes.flatten(), t["codes"])
    assert difference(model.decode(codes), t["reconstruction_unclipped"]) <= 2e-5


def test_vqmodel_reads_every_key_of_its_config(tmp_path):
    """Other widths, channels and codebooks, with attention: the shapes of the file follow diffusers' layout."""
    config = {
        "_class_name": "VQModel",
        "block_out_channels": [16, 32, 48],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 2,
        "latent_channels": 6,
        "vq_embed_dim": 5,
        "num_vq_embeddings": 50,
        "norm_num_groups": 8,
        "mid_block_add_attention": ...,
    }
    folder = copy_of("dimoo_vqvae", tmp_path / "vq", config)
    from unmask.models.vqmodel import VQModel

    module = VQModel.of(Settings(json.loads((folder / "config.json").read_text()), "config.json"), {}, "none")
    assert module.factor == 4
    parameters = dict(module.named_parameters())
    weights = {}
    for theirs, ours in module.names().items():
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in parameters:
                weights[f"{theirs}.{kind}"] = parameters.pop(f"{ours}.{kind}").detach()
    assert not parameters
    expected = {
        "encoder.mid_block.attentions.0.to_q.weight": (48, 48),
        "encoder.mid_block.attentions.0.to_out.0.bias": (48,),
        "decoder.mid_block.attentions.0.group_norm.weight": (48,),
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": (32, 16, 1, 1),
        "decoder.up_blocks.1.resnets.0.conv_shortcut.weight": (32, 48, 1, 1),
        "decoder.up_blocks.2.resnets.2.conv1.weight": (16, 16, 3, 3),
        "decoder.up_blocks.0.upsamplers.0.conv.weight": (48, 48, 3, 3),
        "quant_conv.weight": (5, 6, 1, 1),
        "post_quant_conv.weight": (6, 5, 1, 1),
        "quantize.embedding.weight": (50, 5),
    }
    assert {name: tuple(weights[name].shape) for name in expected} == expected
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    model = load_image_tokenizer(folder)
    codes = torch.randint(50, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.quantise(model.entries(codes)), codes)
    pixels = model.decode(codes)
    assert pixels.shape == (2, 3, 12, 16)
    assert model.encode(pixels).shape == codes.shape


def test_attention_of_the_middle_is_one_head_over_all_places():
    from unmask.models.codec import Attention

    torch.manual_seed(0)
    layer, x = Attention(8, 4).double(), torch.randn(1, 8, 2, 3, dtype=torch.float64)
    h = F.group_norm(x, 4, layer.norm.weight, layer.norm.bias, 1e-6).flatten(2)[0].T
    q, k, v = layer.q(h), layer.k(h), layer.v(h)
    expected = x + layer.o((q @ k.T / 8**0.5).softmax(-1) @ v).T.view(1, 8, 2, 3)
    assert difference(layer(x), expected) <= 1e-12


# ---------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("folder", ["magvitv2", "dimoo_vqvae"])
def test_pictures_go_in_and_come_out(folder):
    model = load_image_tokenizer(DATA / folder)
    generator = np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 256, (32, 48, 3), dtype=np.uint8))
    pixels = model.from_pictures([picture], (48, 32))
    assert pixels.shape == (1, 3, 32, 48)
    low, high = model.pixel_range
    assert low <= pixels.min() and pixels.max() <= high
    half = 0.5 * (high - low) / 255  # truncation would turn a rounding error of 1e-7 into one level
    (back,) = model.to_pictures(pixels + half * 0.5)
    assert np.array_equal(np.asarray(back), np.asarray(picture))
    codes = model.encode(pixels)
    assert codes.shape == (1, 2, 3)
    (decoded,) = model.to_pictures(model.decode(codes))
    assert decoded.size == (48, 32)


def test_pictures_are_scaled_to_cover_and_cut_at_the_centre():
    model = load_image_tokenizer(DATA / "dimoo_vqvae")
    wide = Image.new("L", (64, 16))
    wide.paste(255, (24, 0, 40, 16))
    pixels = model.from_pictures([wide, wide.resize((128, 32))], (16, 16))
    assert pixels.shape == (2, 3, 16, 16)
    assert pixels[:, :, :, 2:-2].min() > 0.9


def test_eight_bit_pictures_are_rounded_as_the_originals_do():
    pixels = torch.full((1, 3, 16, 16), 0.5)
    vq, magvit = (load_image_tokenizer(DATA / folder) for folder in ("dimoo_vqvae", "magvitv2"))
    assert vq.to_pictures(pixels)[0].getpixel((0, 0)) == (128, 128, 128)  # 127.5
    assert magvit.to_pictures(pixels)[0].getpixel((0, 0)) == (191, 191, 191)  # 191.25
    assert magvit.to_pictures(torch.full((1, 3, 16, 16), -0.004))[0].getpixel((0, 0)) == (126, 126, 126)  # 126.99
    assert magvit.to_pictures(pixels * 100)[0].getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_without_a_whole_number_of_codes_is_refused():
    model = load_image_tokenizer(DATA / "magvitv2")
    with pytest.raises(UserError, match="multiples of 16"):
        model.encode(torch.zeros(1, 3, 32, 40))


# ----------------------------------------------------------------------------------------------------- beside a model


def test_an_image_tokenizer_sits_beside_the_weights_or_is_named(tmp_path):
    shutil.copytree(DATA / "mmada", tmp_path / "mmada", ignore=shutil.ignore_patterns("reference.*"))
    assert load(tmp_path / "mmada").image_tokenizer is None
    model = load(tmp_path / "mmada", image_tokenizer=DATA / "magvitv2")
    assert isinstance(model.image_tokenizer, Magvit)
    assert next(model.image_tokenizer.parameters()).dtype == torch.float32
    model.save(tmp_path / "out")
    assert (tmp_path / "out/image_tokenizer/pytorch_model.safetensors").read_bytes() == (
        DATA / "magvitv2/pytorch_model.safetensors"
    ).read_bytes()
    again = load(tmp_path / "out")
    assert again.image_tokenizer is not None
    again.save(tmp_path / "out")
    assert load(tmp_path / "out").image_tokenizer is not None
    with pytest.raises(UserError, match="nowhere"):
        load(tmp_path / "mmada", image_tokenizer=tmp_path / "nowhere")


def test_a_codebook_of_another_size_is_refused(tmp_path):
    shutil.copytree(DATA / "dimoo", tmp_path / "dimoo", ignore=shutil.ignore_patterns("reference.*"))
    vq = copy_of("dimoo_vqvae", tmp_path / "dimoo/image_tokenizer", {"num_vq_embeddings": 8000})
    file = vq / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["quantize.embedding.weight"] = weights["quantize.embedding.weight"][:8000].clone()
    save_file(weights, file)
    with pytest.raises(UserError, match="8000"):
        _ = load(tmp_path / "dimoo").image_tokenizer


VQ_ERRORS = {
    "act_fn": ("relu", ["act_fn"]),
    "norm_type": ("spatial", ["norm_type"]),
    "lookup_from_codebook": (False, ["lookup_from_codebook"]),
    "down_block_types": (["AttnDownEncoderBlock2D"] * 5, ["down_block_types", "DownEncoderBlock2D"]),
    "block_out_channels": ([], ["block_out_channels"]),
    "norm_num_groups": (5, ["norm_num_groups", "32"]),
    "latent_channels": (4, ["conv_out", "[8, 32, 3, 3]", "[4, 32, 3, 3]"]),
    "layers_per_block": (2, ["missing", "resnets.2.conv1.weight"]),
    "mid_block_add_attention": (True, ["missing", "attentions.0"]),
    "_class_name": ("AutoencoderKL", ["AutoencoderKL", "MAGVITv2", "VQModel"]),
}


@pytest.mark.parametrize("key", VQ_ERRORS)
def test_a_config_that_cannot_be_honoured_is_refused(key, tmp_path):
    value, words = VQ_ERRORS[key]
    message = error_of(copy_of("dimoo_vqvae", tmp_path / "vq", {key: value}))
    for word in words:
        assert word in message


def test_defects_of_the_files_are_named(tmp_path):
    folder = copy_of("magvitv2", tmp_path / "magvit")
    file = folder / "pytorch_model.safetensors"
    whole = load_file(file)
    save_file(whole | {"surprise": torch.ones(1)}, file)
    assert "surprise" in error_of(folder)
    save_file({name: value for name, value in whole.items() if name != "encoder.norm_out.bias"}, file)
    assert "encoder.norm_out.bias" in error_of(folder)
    save_file({name: value for name, value in whole.items() if name != "decoder.conv_in.weight"}, file)
    assert "decoder.conv_in.weight" in error_of(folder)
    save_file(whole | {"encoder.quant_conv.bias": torch.ones(12)}, file)
    assert "encoder.quant_conv.bias" in error_of(folder)
    save_file({name: value for name, value in whole.items() if name not in DERIVED}, file)
    assert load_image_tokenizer(folder).codes == 8192
    file.write_bytes(file.read_bytes()[:-5])
    assert "truncated" in error_of(folder)
    file.unlink()
    assert "pytorch_model.safetensors" in error_of(folder)
