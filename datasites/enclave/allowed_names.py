"""The names that a `model.py` may use. What is not listed here is refused; the lists are the substance of the rule set.

Data only. Lists name what honest models need and nothing that writes in place, reads uninitialised memory, draws
random numbers, reaches storage, hooks, devices, files or compilers, or turns a tensor into a Python number. The lists
are literal rather than taken from the installed torch, so that a verdict does not change with its version.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


MODULES = frozenset({"torch", "torch.nn", "torch.nn.functional", "math"})

#: Builtins that model code may call or name. No access to attributes by name, no code, no I/O, no stored iterators.
BUILTINS = _names(
    """
    abs bool dict enumerate float int isinstance len list max min range reversed round sorted str sum super tuple
    zip
    """
)  # fmt: skip
#: Builtins that return iterators, which keep their position: only to loop over, never to store.
ITERATORS = _names("enumerate reversed zip")
#: Builtins that accept a tensor without turning it into a Python number or reading its values.
BUILTINS_ON_ROWS = _names("abs dict enumerate isinstance len list sum tuple zip")
EXCEPTIONS = _names("NotImplementedError RuntimeError TypeError ValueError")

#: Layers that have no parameters, or parameters whose per-row gradients the trainer can clip.
LAYERS = _names(
    """
    Linear Embedding Conv1d Conv2d Conv3d LayerNorm GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d RMSNorm
    RNN GRU LSTM MultiheadAttention TransformerEncoder TransformerEncoderLayer TransformerDecoder
    TransformerDecoderLayer Sequential ModuleList ModuleDict Identity Flatten Unflatten Dropout Dropout1d Dropout2d
    Dropout3d ReLU ReLU6 LeakyReLU ELU CELU SELU GELU SiLU Mish Sigmoid LogSigmoid Tanh Softplus Softsign Hardtanh
    Hardswish Hardsigmoid Hardshrink Softshrink Tanhshrink GLU Softmax LogSoftmax Softmin AvgPool1d AvgPool2d
    AvgPool3d MaxPool1d MaxPool2d MaxPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d
    AdaptiveMaxPool2d AdaptiveMaxPool3d ConstantPad1d ConstantPad2d ConstantPad3d ZeroPad1d ZeroPad2d ZeroPad3d
    ReflectionPad1d ReflectionPad2d ReplicationPad1d ReplicationPad2d ReplicationPad3d CircularPad1d CircularPad2d
    Upsample UpsamplingNearest2d UpsamplingBilinear2d PixelShuffle PixelUnshuffle ChannelShuffle LocalResponseNorm
    CosineSimilarity
    """
)
#: Bases of the classes that a model may define.
BASES = frozenset({"torch.nn.Module"})

#: Functions of torch.nn.functional: element-wise, row-wise, or pooling. None takes a weight.
FUNCTIONAL = _names(
    """
    relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid logsigmoid tanh softplus softsign hardtanh hardswish
    hardsigmoid hardshrink softshrink tanhshrink glu softmax log_softmax softmin normalize cosine_similarity
    avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d pad interpolate one_hot
    pixel_shuffle pixel_unshuffle unfold scaled_dot_product_attention
    """
)
#: Losses of torch.nn.functional: allowed with `reduction="none"` only, so that there is one loss for each row. Not
#: here: binary_cross_entropy and gaussian_nll_loss, which raise on probabilities and variances out of range.
LOSSES = _names(
    """
    binary_cross_entropy_with_logits cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss
    poisson_nll_loss soft_margin_loss
    """
)

#: Functions that exist alike as `torch.f(x, ...)` and `x.f(...)`, with nothing but values going in and out.
ELEMENTWISE = _names(
    """
    abs add sub mul div neg exp expm1 log log1p log2 log10 sqrt rsqrt square pow sin cos tan tanh sigmoid relu erf
    clamp round floor ceil sign maximum minimum where logical_and logical_or logical_not logical_xor eq ne lt le gt
    ge isnan isfinite masked_fill lerp logit reciprocal atan2 nan_to_num addcmul
    """
)
#: Functions that work along an axis: position of `dim` among the arguments after the tensor. It must be written out.
ALONG_AXIS = {
    **dict.fromkeys(_names("sum mean prod amax amin max min argmax argmin std var logsumexp any all median"), 0),
    **dict.fromkeys(_names("softmax log_softmax softmin cumsum cumprod"), 0),
    **dict.fromkeys(_names("flip unbind gather index_select narrow select"), 0),
    **dict.fromkeys(_names("flatten squeeze unflatten"), 0),
    **dict.fromkeys(_names("split chunk topk roll norm diff glu"), 1),
    **dict.fromkeys(_names("sort argsort"), 0),
    **dict.fromkeys(_names("cat concat stack"), 0),
    "normalize": 1,
    "cosine_similarity": 1,
}  # fmt: skip
#: Those of the above whose default axis is the last, or the second for normalize and cosine_similarity.
SAFE_DEFAULT_AXIS = _names("sort argsort topk diff glu normalize cosine_similarity")
#: Position of `dim` for layers that have one; required where torch's default would guess.
LAYER_AXIS = {
    "Softmax": 0,
    "LogSoftmax": 0,
    "Softmin": 0,
    "Flatten": 0,
    "Unflatten": 0,
    "GLU": 0,
    "CosineSimilarity": 0,
}
LAYER_AXIS_DEFAULTS = frozenset({"Flatten", "GLU", "CosineSimilarity"})

#: Functions that swap axes: their arguments must be written out and leave axis 0 where it is.
SWAPS = _names("transpose swapaxes movedim permute")
#: Functions that take a new shape; its first entry is the batch.
SHAPES = _names("view reshape expand new_zeros new_ones")
LIKE = _names("view_as reshape_as expand_as type_as")

#: Operations that raise where an index is out of range: no index may come from a row.
RAISES_ON_INDEX = _names("gather index_select")

#: Other methods of a tensor.
OTHER_METHODS = _names("unsqueeze matmul bmm size dim float long bool contiguous clone repeat")
#: Values of a tensor that are public: its shape and type.
TENSOR_ATTRIBUTES = _names("shape ndim dtype device")

#: Methods that change a list or a set, and that a tensor has under the same name without changing it. The text doesn't
#: tell what a method is called on, so these are allowed only as functions of torch.
CHANGES_CONTAINERS = _names("sort add")

METHODS = (
    (ELEMENTWISE | frozenset(ALONG_AXIS) | SWAPS | SHAPES | LIKE | OTHER_METHODS)
    - _names("cat concat stack softmin normalize cosine_similarity glu")
    - CHANGES_CONTAINERS
)

#: Functions of torch beside those that are methods too. No random numbers; no `empty`, which reads old memory.
TORCH = (
    ELEMENTWISE
    | (frozenset(ALONG_AXIS) - {"softmin", "normalize", "cosine_similarity", "glu"})
    | SWAPS
    | _names(
        """
    reshape unsqueeze matmul bmm einsum zeros ones full zeros_like ones_like full_like arange linspace tensor eye
    triu tril
    """
    )
)
#: Functions that make a tensor from numbers: none of these numbers may depend on rows.
MAKERS = _names("zeros ones full arange linspace eye tensor")
#: Functions whose arguments after the first may hold rows; those of all others are numbers, axes and shapes.
ROWS_IN_ARGUMENTS = (
    ELEMENTWISE | LIKE | _names("cat concat stack matmul bmm einsum cosine_similarity scaled_dot_product_attention")
)
#: Names of torch that are types or constants rather than functions.
TORCH_VALUES = _names("Tensor float32 long int64 bool float pi inf")

MATH = _names(
    """
    sqrt exp log log2 log10 pow sin cos tan tanh floor ceil prod gcd isfinite isnan pi e inf tau
    """
)

#: Initialisers for weights while a model is built: random values, zeros or ones. None that writes chosen values.
INITIALISERS = _names(
    """
    kaiming_normal_ kaiming_uniform_ xavier_normal_ xavier_uniform_ normal_ uniform_ trunc_normal_ orthogonal_
    zeros_ ones_ calculate_gain
    """
)
WEIGHTS = _names("weight bias")

#: Public sizes of a layer.
LAYER_ATTRIBUTES = _names(
    """
    in_features out_features in_channels out_channels hidden_size embedding_dim num_embeddings num_layers
    """
)
#: Methods of lists, dictionaries and strings that change nothing.
CONTAINER_METHODS = _names("items keys values get lower upper")
#: Changes to a list: on a local list, or while a model is built.
LIST_METHODS = _names("append extend insert")
#: Methods that iterate over a model's layers while it is built.
WALKS = _names("modules children named_modules named_children")

#: Keywords that may be given to torch. Not here: out, inplace, generator, requires_grad, device, pin_memory, hooks.
KEYWORDS = _names(
    """
    dim axis keepdim device start_dim end_dim dims dtype bias in_features out_features in_channels out_channels
    kernel_size stride padding dilation groups padding_mode num_embeddings embedding_dim padding_idx input_size
    hidden_size num_layers batch_first dropout bidirectional nonlinearity embed_dim num_heads add_bias_kv
    add_zero_attn kdim vdim d_model nhead dim_feedforward activation norm_first layer_norm_eps encoder_layer
    decoder_layer enable_nested_tensor mask_check norm num_groups num_channels normalized_shape eps
    elementwise_affine affine track_running_stats momentum negative_slope alpha beta threshold approximate p
    output_size return_indices ceil_mode count_include_pad divisor_override scale_factor size mode align_corners
    antialias value reduction pos_weight weight ignore_index label_smoothing delta log_input full a b std mean gain
    lower is_causal attn_mask attn_bias scale enable_gqa key_padding_mask need_weights average_attn_weights
    src_key_padding_mask mask src_mask tgt_mask memory_mask other input min max num_classes upscale_factor
    downscale_factor lambd index k largest sorted descending unbiased correction diagonal steps start end step
    fill_value repeats shifts dim0 dim1 source destination split_size_or_sections chunks tensors unflattened_size
    shape exponent min_val max_val nan posinf neginf tensor1 tensor2 n_levels dropout_p bound hx
    """
)

#: Attributes of torch.nn.Module and of tensors with a meaning of their own: a model may not define or replace them.
RESERVED = _names(
    """
    T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches
    eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict
    modules mtia named_buffers named_children named_modules named_parameters parameters register_backward_hook
    register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook
    register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_
    set_extra_state set_submodule share_memory state_dict to to_empty train type xpu zero_grad training weight bias
    data grad grad_fn requires_grad device storage untyped_storage numpy item tolist backward detach register_hook
    retain_grad is_leaf volatile names _apply _call_impl _compiled_call_impl _get_backward_hooks
    _get_backward_pre_hooks _get_name _load_from_state_dict _maybe_warn_non_full_backward_hook _named_members
    _register_load_state_dict_pre_hook _register_state_dict_hook _replicate_for_data_parallel _save_to_state_dict
    _slow_forward _version _wrapped_call_impl _backward_hooks _backward_pre_hooks _buffers _forward_hooks
    _forward_hooks_always_called _forward_hooks_with_kwargs _forward_pre_hooks _forward_pre_hooks_with_kwargs
    _is_full_backward_hook _load_state_dict_post_hooks _load_state_dict_pre_hooks _modules
    _non_persistent_buffers_set _parameters _state_dict_hooks _state_dict_pre_hooks
    """
)

#: What to write instead, for names that honest models are likely to use.
REMEDIES = {
    "BatchNorm1d": "use nn.GroupNorm or nn.LayerNorm: batch statistics mix the rows of a batch",
    "BatchNorm2d": "use nn.GroupNorm: batch statistics mix the rows of a batch",
    "BatchNorm3d": "use nn.GroupNorm: batch statistics mix the rows of a batch",
    "SyncBatchNorm": "use nn.GroupNorm: batch statistics mix the rows of a batch",
    "Parameter": "keep weights in layers (nn.Linear, nn.Embedding ...): only those can be clipped row by row",
    "register_buffer": "compute constants in forward, or keep numbers as plain attributes",
    "dropout": "use nn.Dropout",
    "dropout2d": "use nn.Dropout2d",
    "linear": "use nn.Linear and call the layer",
    "embedding": "use nn.Embedding and call the layer",
    "conv2d": "use nn.Conv2d and call the layer",
    "BCEWithLogitsLoss": 'use F.binary_cross_entropy_with_logits(..., reduction="none")',
    "CrossEntropyLoss": 'use F.cross_entropy(..., reduction="none")',
    "binary_cross_entropy": 'use F.binary_cross_entropy_with_logits(..., reduction="none"), which accepts any number',
    "BCELoss": 'use F.binary_cross_entropy_with_logits(..., reduction="none"), which accepts any number',
    "gaussian_nll_loss": "write 0.5 * (torch.log(variance) + (target - mean) ** 2 / variance), for any number",
    "GaussianNLLLoss": "write 0.5 * (torch.log(variance) + (target - mean) ** 2 / variance), for any number",
    "MSELoss": 'use F.mse_loss(..., reduction="none")',
    "data": "leave weights to the trainer; initialise them with nn.init in __init__",
    "weight": "call the layer; its weight can be named only in nn.init.*_(layer.weight) in __init__",
    "T": "use .transpose(1, 2): axis 0 is the batch",
    "t": "use .transpose(1, 2): axis 0 is the batch",
    "mT": "use .transpose(-2, -1) on tensors with three or more axes",
    "item": "keep values in tensors; use torch.where to choose between values",
    "sort": "write torch.sort(x, dim=1): on a list, x.sort() would change it",
    "add": "write x + y: on a set, x.add() would change it",
    "take_along_dim": "write (F.one_hot(index, num_classes=n) * x).sum(dim=1), which accepts any index",
    "scatter": "compare with torch.arange, which accepts any index",
    "bincount": "write F.one_hot(codes, num_classes=n).sum(dim=1)",
    "remainder": "write a - b * torch.floor(a / b)",
    "fmod": "write a - b * torch.floor(a / b)",
    "floor_divide": "write torch.floor(a / b)",
    "numel": "use x.shape[1]; the number of rows is private",
    "training": "use nn.Dropout, which is active only in training",
    "apply": "loop over self.modules() in __init__",
    "randn": "leave random numbers out; initialise weights with nn.init",
    "rand": "leave random numbers out; initialise weights with nn.init",
    "empty": "use torch.zeros",
    "to": "use .float() or .long(); the trainer chooses the device",
    "device": "write device=x.device, or leave it out",
    "inplace": "leave it out",
    "print": "leave it out: printed text never leaves the hospital",
    "no_grad": "leave it out",
}
