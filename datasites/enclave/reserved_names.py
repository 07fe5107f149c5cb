"""Names that mean something to Python or torch beyond what a model may use; the verifier's other list.

A model may name its own attributes as it likes, but where it reads an attribute of something else, a name of its own
choosing must not happen to be one of these: else defining `copy` on one class would open `copy` on every tensor. The
lists are written out (torch 2.13, Python 3.11 to 3.13) so that a verdict does not change with what is installed.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Attributes of tensors, layers, lists, dictionaries, strings, exceptions and functions that `allowed_names` leaves
#: out.
OTHER_ATTRIBUTES = _names(
    """
    H T abbr absolute acos acosh add add_note addbmm addcdiv addmm addmv addr adjoint all_weights allclose aminmax
    angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh args argwhere as_integer_ratio as_strided
    as_strided_scatter as_subclass asin asinh atan atanh baddbmm bernoulli bincount bit_count bit_length bitwise_and
    bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor broadcast_to byte capitalize casefold
    ccol_indices cdouble center cfloat chalf char check_forward_args check_hidden_size check_input cholesky
    cholesky_inverse cholesky_solve clamp_max clamp_min clear clip coalesce col_indices conj conj_physical conjugate
    const_data_ptr copy copysign corrcoef cosh count count_nonzero cov cross crow_indices cummax cummin data_ptr
    decode deg2rad denominator dense_dim dequantize det diag diag_embed diagflat diagonal diagonal_scatter
    difference difference_update digamma dim_order discard dist divide dot dsplit eig element_size encode endswith
    equal erfc erfinv exp2 expandtabs find fix flatten_parameters fliplr flipud float_power floor_divide fmax fmin
    fmod format format_map frac frexp from_bytes from_pretrained fromhex fromkeys gcd geqrf ger get_device
    get_expected_cell_size get_expected_hidden_size grad_dtype greater greater_equal hardshrink hash_tensor
    heaviside hex histc histogram hsplit hypot i0 igamma igammac imag index index_add index_copy index_fill
    index_put index_reduce indices inner int int_repr intersection intersection_update inverse is_coalesced
    is_complex is_conj is_contiguous is_cpu is_cuda is_distributed is_floating_point is_inference is_integer is_ipu
    is_maia is_meta is_mkldnn is_mps is_mtia is_neg is_nested is_nonzero is_pinned is_quantized is_same_size
    is_set_to is_shared is_signed is_sparse is_sparse_csr is_vulkan is_xla is_xpu isalnum isalpha isascii isclose
    isdecimal isdigit isdisjoint isidentifier isinf islower isneginf isnumeric isposinf isprintable isreal isspace
    issubset issuperset istft istitle isupper itemsize join kron kthvalue layout lcm ldexp less less_equal lgamma
    ljust logaddexp logaddexp2 logcumsumexp logdet lstrip lstsq lu lu_solve mH mT maketrans masked_scatter
    masked_select matrix_exp matrix_power merge_masks mm mode module_load moveaxis msort multinomial multiply mv
    mvlgamma name nanmean nanmedian nanquantile nansum narrow_copy nbytes ndimension negative nelement new new_empty
    new_empty_strided new_full new_tensor nextafter nonzero nonzero_static not_equal numel numerator orgqr ormqr
    outer output_nr partition permute_hidden pin_memory pinverse polygamma pop popitem positive prelu put
    q_per_channel_axis q_per_channel_scales q_per_channel_zero_points q_scale q_zero_point qr qscheme quantile
    rad2deg ravel real record_stream register_post_accumulate_grad_hook reinforce remainder remove removeprefix
    removesuffix renorm repeat_interleave replace reset_parameters reset_running_stats resize resize_as resolve_conj
    resolve_neg retains_grad reverse rfind rindex rjust rot90 row_indices rpartition rsplit rstrip scatter
    scatter_add scatter_reduce select_scatter setdefault sgn short signbit sinc sinh slice_inverse slice_scatter
    slogdet smm solve sort sparse_dim sparse_mask split_with_sizes splitlines sspaddmm start startswith step stft
    stop storage_offset storage_type stride strip subtract sum_to_size svd swapcase swapdims symeig
    symmetric_difference symmetric_difference_update t take take_along_dim tensor_split tile title to_bytes
    to_complex to_dense to_mkldnn to_padded_tensor to_real to_sparse to_sparse_bsc to_sparse_bsr to_sparse_coo
    to_sparse_csc to_sparse_csr trace translate triangular_solve tril triu true_divide trunc unfold union unique
    unique_consecutive unsafe_chunk unsafe_split unsafe_split_with_sizes update vdot vsplit with_traceback xlogy
    zfill
    """
)

#: Builtins of Python. A comprehension's variable may not have such a name: outside it, the name is the builtin again.
PYTHON_BUILTINS = _names(
    """
    ArithmeticError AssertionError AttributeError BaseException BaseExceptionGroup BlockingIOError BrokenPipeError
    BufferError BytesWarning ChildProcessError ConnectionAbortedError ConnectionError ConnectionRefusedError
    ConnectionResetError DeprecationWarning EOFError Ellipsis EncodingWarning EnvironmentError Exception
    ExceptionGroup False FileExistsError FileNotFoundError FloatingPointError FutureWarning GeneratorExit IOError
    ImportError ImportWarning IndentationError IndexError InterruptedError IsADirectoryError KeyError
    KeyboardInterrupt LookupError MemoryError ModuleNotFoundError NameError None NotADirectoryError NotImplemented
    NotImplementedError OSError OverflowError PendingDeprecationWarning PermissionError ProcessLookupError
    PythonFinalizationError RecursionError ReferenceError ResourceWarning RuntimeError RuntimeWarning
    StopAsyncIteration StopIteration SyntaxError SyntaxWarning SystemError SystemExit TabError TimeoutError True
    TypeError UnboundLocalError UnicodeDecodeError UnicodeEncodeError UnicodeError UnicodeTranslateError
    UnicodeWarning UserWarning ValueError Warning ZeroDivisionError _IncompleteInputError abs aiter all anext any
    ascii bin bool breakpoint bytearray bytes callable chr classmethod compile complex copyright credits delattr
    dict dir divmod enumerate eval exec exit filter float format frozenset getattr globals hasattr hash help hex id
    input int isinstance issubclass iter len license list locals map max memoryview min next object oct open ord pow
    print property quit range repr reversed round set setattr slice sorted staticmethod str sum super tuple type
    vars zip
    """
)
