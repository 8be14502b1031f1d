"""TensorFlow operations that compute and do nothing else: no files, no Python, no network, no state.

A graph or a configuration from a file may name any operation that TensorFlow has, and some write files.
"""

from __future__ import annotations

# operations of a graph, by what they do
_ARITHMETIC = """
Abs Add AddN AddV2 BiasAdd Ceil ClipByValue Div DivNoNan Equal Erf Erfc Exp Expm1 Floor FloorDiv FloorMod
Greater GreaterEqual Inv LeakyRelu Elu Selu Relu Relu6 Softplus Softsign Sigmoid Tanh Softmax LogSoftmax
Less LessEqual Log Log1p LogicalAnd LogicalNot LogicalOr Maximum Minimum Mod Mul MulNoNan Neg NotEqual Pow
RealDiv Reciprocal Rint Round Rsqrt Select SelectV2 Sign Sin Cos Sqrt Square SquaredDifference Sub
TruncateDiv Xdivy All Any ArgMax ArgMin Cumsum Max Mean Min Prod Sum L2Loss TopKV2
"""
_NETWORK = """
AvgPool BatchMatMul BatchMatMulV2 BatchMatMulV3 BatchNormWithGlobalNormalization BatchToSpaceND Conv2D
Conv2DBackpropInput DepthToSpace DepthwiseConv2dNative Dilation2D Einsum FusedBatchNorm FusedBatchNormV2
FusedBatchNormV3 LRN MatMul MaxPool MaxPoolV2 MaxPoolWithArgmax ResizeArea ResizeBicubic ResizeBilinear
ResizeNearestNeighbor SpaceToBatchND SpaceToDepth CropAndResize
"""
_SHAPES = """
BroadcastArgs BroadcastTo Cast Concat ConcatV2 ExpandDims Fill Gather GatherNd GatherV2 MirrorPad OneHot
OnesLike Pack Pad PadV2 Range Rank Reshape ReverseV2 ScatterNd Shape ShapeN Size Slice Split SplitV Squeeze
StridedSlice TensorScatterAdd TensorScatterUpdate Tile Transpose Unpack Where ZerosLike Bitcast StopGradient
PreventGradient EnsureShape
"""
_PLUMBING = """
Const Identity IdentityN NoOp Placeholder PlaceholderWithDefault PartitionedCall StatefulPartitionedCall
ReadVariableOp VarHandleOp VariableV2 Variable If StatelessIf While StatelessWhile Switch Merge Snapshot
"""
PURE_OPS = frozenset(f"{_ARITHMETIC} {_NETWORK} {_SHAPES} {_PLUMBING}".split())

# functions of TensorFlow's Python interface that Keras 2 stored by name, whole namespaces of pure ones first
_PURE_SPACES = ("__operators__.", "compat.v1.math.", "compat.v1.nn.", "math.", "nn.")
_PURE_FUNCTIONS = """
abs add argmax broadcast_to cast clip_by_value compat.v1.concat compat.v1.image.resize_bilinear
compat.v1.image.resize_nearest_neighbor compat.v1.pad compat.v1.reshape compat.v1.shape compat.v1.squeeze
compat.v1.transpose concat cos divide exp expand_dims fill floor gather identity image.adjust_brightness
image.central_crop image.crop_to_bounding_box image.pad_to_bounding_box image.per_image_standardization
image.resize image.resize_with_crop_or_pad image.rgb_to_grayscale image.grayscale_to_rgb linalg.matmul
matmul maximum minimum multiply negative ones_like pad pow reduce_max reduce_mean reduce_min reduce_sum
repeat reshape reverse round shape sigmoid sign sin slice split sqrt square squeeze stack stop_gradient
strided_slice subtract tanh tile transpose truediv unstack where zeros_like
"""
_PURE_NAMES = frozenset(_PURE_FUNCTIONS.split())


def is_pure_function(name: str) -> bool:
    """Tell whether a function of TensorFlow's public interface only computes."""
    return name in _PURE_NAMES or name.startswith(_PURE_SPACES)
