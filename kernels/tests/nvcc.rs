//! Every kernel compiles with nvcc for every architecture that its description allows, in the configurations
//! that measurements prefer, and uses no more local memory a thread than the description allows. Needs nvcc
//! but no GPU. Without nvcc (`AQLM_NVCC`, or `nvcc` on the path) the test says so and is waived.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use aqlm_kernels::Kernel;

const CASES: &[(&str, &str)] = &[
    (
        "matvec/k1_naive",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_OUT_G=1",
    ),
    (
        "matvec/k1_naive",
        "-DAQLM_M=3 -DAQLM_B=5 -DAQLM_G=4 -DAQLM_OUT_G=2",
    ),
    (
        "matvec/k2_shared_codebook",
        "-DAQLM_M=1 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_UNIT=4",
    ),
    (
        "matvec/k2_shared_codebook",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_UNIT=2",
    ),
    (
        "matvec/k2_shared_codebook",
        "-DAQLM_M=2 -DAQLM_B=12 -DAQLM_G=8 -DAQLM_REPLICAS=1 -DAQLM_UNIT=4",
    ),
    (
        "matvec/k2_shared_codebook",
        "-DAQLM_M=1 -DAQLM_B=12 -DAQLM_G=8 -DAQLM_REPLICAS=1 -DAQLM_UNIT=8",
    ),
    ("matvec/k3_lookup_table", "-DAQLM_M=1 -DAQLM_G=8"),
    ("matvec/k3_lookup_table", "-DAQLM_M=2 -DAQLM_G=8"),
    ("matvec/k3_lookup_table", "-DAQLM_M=3 -DAQLM_G=8"),
    ("matvec/k3_lookup_table", "-DAQLM_M=4 -DAQLM_G=8"),
    ("matvec/k3_lookup_table", "-DAQLM_M=1 -DAQLM_G=16"),
    ("matvec/k4_sliced_codebook", "-DAQLM_B=16 -DAQLM_G=8"),
    ("matvec/k4_sliced_codebook", "-DAQLM_B=15 -DAQLM_G=8"),
    ("matvec/k4_sliced_codebook", "-DAQLM_B=16 -DAQLM_G=16"),
    (
        "matvec/k5_staged_codes",
        "-DAQLM_M=1 -DAQLM_G=8 -DAQLM_DEPTH=3 -DAQLM_BEFORE=3",
    ),
    (
        "matvec/k5_staged_codes",
        "-DAQLM_M=2 -DAQLM_G=8 -DAQLM_DEPTH=5 -DAQLM_BEFORE=3",
    ),
    (
        "matvec/k5_staged_codes",
        "-DAQLM_M=4 -DAQLM_G=16 -DAQLM_DEPTH=5 -DAQLM_BEFORE=3",
    ),
    ("matvec/k6_product_tables", "-DAQLM_B=16 -DAQLM_G=8"),
    ("matvec/k6_product_tables", "-DAQLM_B=16 -DAQLM_G=16"),
    ("matvec/k7_lane_inputs", "-DAQLM_G=8 -DAQLM_SLICE_BITS=12"),
    ("matvec/k7_lane_inputs", "-DAQLM_G=16 -DAQLM_SLICE_BITS=11"),
    (
        "matmul/k1_naive",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_OUT_G=1",
    ),
    // The configurations that the H100 measurements prefer, for 16, 32, 64 and 128 rows of x.
    (
        "matmul/k2_fused_tensor",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_ROW_WARPS=1 -DAQLM_TILES=11 -DAQLM_SLICES=8 -DAQLM_BATCH_TILES=1",
    ),
    (
        "matmul/k2_fused_tensor",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_ROW_WARPS=1 -DAQLM_TILES=11 -DAQLM_SLICES=8 -DAQLM_BATCH_TILES=2",
    ),
    (
        "matmul/k2_fused_tensor",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_ROW_WARPS=4 -DAQLM_TILES=6 -DAQLM_SLICES=2 -DAQLM_BATCH_TILES=4",
    ),
    (
        "matmul/k2_fused_tensor",
        "-DAQLM_M=1 -DAQLM_B=16 -DAQLM_G=8 -DAQLM_REPLICAS=0 -DAQLM_ROW_WARPS=1 -DAQLM_TILES=11 -DAQLM_SLICES=8 -DAQLM_BATCH_TILES=1",
    ),
    (
        "matmul/k2_fused_tensor",
        "-DAQLM_M=1 -DAQLM_B=16 -DAQLM_G=16 -DAQLM_REPLICAS=0 -DAQLM_ROW_WARPS=4 -DAQLM_TILES=3 -DAQLM_SLICES=2 -DAQLM_BATCH_TILES=8",
    ),
    (
        "matmul/k2_fused_tensor",
        "-DAQLM_M=2 -DAQLM_B=12 -DAQLM_G=8 -DAQLM_REPLICAS=1 -DAQLM_ROW_WARPS=2 -DAQLM_TILES=4 -DAQLM_SLICES=4 -DAQLM_BATCH_TILES=1",
    ),
    (
        "matmul/k4_hot_codewords",
        "-DAQLM_B=16 -DAQLM_G=8 -DAQLM_HOT=14336 -DAQLM_ROW_WARPS=1 -DAQLM_TILES=11 -DAQLM_SLICES=8 -DAQLM_BATCH_TILES=1",
    ),
    (
        "matmul/k4_hot_codewords",
        "-DAQLM_B=16 -DAQLM_G=8 -DAQLM_HOT=14336 -DAQLM_ROW_WARPS=2 -DAQLM_TILES=6 -DAQLM_SLICES=4 -DAQLM_BATCH_TILES=2",
    ),
    (
        "matmul/k4_hot_codewords",
        "-DAQLM_B=14 -DAQLM_G=16 -DAQLM_HOT=7168 -DAQLM_ROW_WARPS=1 -DAQLM_TILES=11 -DAQLM_SLICES=8 -DAQLM_BATCH_TILES=1",
    ),
    (
        "matmul/k3_warpgroup",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_WARPGROUPS=3 -DAQLM_SLICES=2 -DAQLM_CLUSTER=2 -DAQLM_BATCH=16 -DAQLM_SPREAD=0",
    ),
    (
        "matmul/k3_warpgroup",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_WARPGROUPS=3 -DAQLM_SLICES=2 -DAQLM_CLUSTER=2 -DAQLM_BATCH=128 -DAQLM_SPREAD=0",
    ),
    (
        "matmul/k3_warpgroup",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_WARPGROUPS=2 -DAQLM_SLICES=1 -DAQLM_CLUSTER=1 -DAQLM_BATCH=256 -DAQLM_SPREAD=0",
    ),
    (
        "matmul/k3_warpgroup",
        "-DAQLM_M=1 -DAQLM_B=16 -DAQLM_G=8 -DAQLM_REPLICAS=0 -DAQLM_WARPGROUPS=3 -DAQLM_SLICES=2 -DAQLM_CLUSTER=8 -DAQLM_BATCH=16 -DAQLM_SPREAD=4",
    ),
    (
        "matmul/k3_warpgroup",
        "-DAQLM_M=1 -DAQLM_B=16 -DAQLM_G=8 -DAQLM_REPLICAS=0 -DAQLM_WARPGROUPS=3 -DAQLM_SLICES=2 -DAQLM_CLUSTER=8 -DAQLM_BATCH=128 -DAQLM_SPREAD=4",
    ),
    (
        "matmul/k3_warpgroup",
        "-DAQLM_M=1 -DAQLM_B=16 -DAQLM_G=16 -DAQLM_REPLICAS=0 -DAQLM_WARPGROUPS=3 -DAQLM_SLICES=2 -DAQLM_CLUSTER=2 -DAQLM_BATCH=128 -DAQLM_SPREAD=0",
    ),
    (
        "matmul/k3_warpgroup",
        "-DAQLM_M=1 -DAQLM_B=16 -DAQLM_G=8 -DAQLM_REPLICAS=0 -DAQLM_WARPGROUPS=3 -DAQLM_SLICES=2 -DAQLM_CLUSTER=2 -DAQLM_BATCH=128 -DAQLM_SPREAD=0",
    ),
    (
        "matmul/k3_warpgroup",
        "-DAQLM_M=4 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_WARPGROUPS=3 -DAQLM_SLICES=2 -DAQLM_CLUSTER=2 -DAQLM_BATCH=128 -DAQLM_SPREAD=0",
    ),
    (
        "decode/k1_naive",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_OUT_G=1",
    ),
    (
        "decode/k2_tiles",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8",
    ),
    (
        "decode/k2_tiles",
        "-DAQLM_M=1 -DAQLM_B=16 -DAQLM_G=16 -DAQLM_REPLICAS=0",
    ),
    ("matvec/k3_lookup_table", "-DAQLM_M=2 -DAQLM_G=8 -DAQLM_PARTS=3"),
    (
        "matvec/k4_sliced_codebook",
        "-DAQLM_B=16 -DAQLM_G=8 -DAQLM_PARTS=2",
    ),
    (
        "matvec/k1_naive",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_OUT_G=1 -DAQLM_EXPERTS=1",
    ),
    (
        "matvec/k2_shared_codebook",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_UNIT=2 -DAQLM_EXPERTS=1",
    ),
    ("matvec/k3_lookup_table", "-DAQLM_M=2 -DAQLM_G=8 -DAQLM_EXPERTS=1"),
    (
        "matvec/k3_lookup_table",
        "-DAQLM_M=2 -DAQLM_G=8 -DAQLM_PARTS=2 -DAQLM_EXPERTS=1",
    ),
    (
        "matvec/k4_sliced_codebook",
        "-DAQLM_B=16 -DAQLM_G=8 -DAQLM_PARTS=2 -DAQLM_EXPERTS=1",
    ),
    (
        "matvec/k4_sliced_codebook",
        "-DAQLM_B=16 -DAQLM_G=16 -DAQLM_EXPERTS=1",
    ),
    (
        "dense/k1_warp_a_row",
        "-DAQLM_VECTOR=8 -DAQLM_WIDE=0 -DAQLM_EXPERTS=1",
    ),
    ("embed/k1_rows", "-DNOTHING"),
    ("embed/k1_rows", "-DAQLM_SCALED=1"),
    (
        "residual_norm/k1_block_a_row",
        "-DAQLM_WIDTH=4096 -DAQLM_THREADS=1024 -DAQLM_SLOTS=2 -DAQLM_SHARES=1 -DAQLM_BIAS=0 -DAQLM_AFTER=0 -DAQLM_BEFORE=1",
    ),
    (
        "residual_norm/k1_block_a_row",
        "-DAQLM_WIDTH=3584 -DAQLM_THREADS=1024 -DAQLM_SLOTS=1 -DAQLM_SHARES=0 -DAQLM_BIAS=1 -DAQLM_AFTER=1 -DAQLM_BEFORE=1",
    ),
    (
        "residual_norm/k1_block_a_row",
        "-DAQLM_WIDTH=33 -DAQLM_THREADS=64 -DAQLM_SLOTS=0 -DAQLM_SHARES=0 -DAQLM_BIAS=0 -DAQLM_AFTER=0 -DAQLM_BEFORE=0",
    ),
    (
        "head_norm/k1_block_a_piece",
        "-DAQLM_THREADS=128 -DAQLM_BIAS=1 -DAQLM_NORMS=3",
    ),
    (
        "head_norm/k1_block_a_piece",
        "-DAQLM_THREADS=128 -DAQLM_BIAS=0 -DAQLM_NORMS=1",
    ),
    (
        "route/k1_one_warp",
        "-DAQLM_EXPERT_COUNT=8 -DAQLM_USED=2 -DAQLM_NORMALIZED=1 -DAQLM_SHARED_EXPERT=0",
    ),
    (
        "route/k1_one_warp",
        "-DAQLM_EXPERT_COUNT=128 -DAQLM_USED=8 -DAQLM_NORMALIZED=0 -DAQLM_SHARED_EXPERT=1",
    ),
    ("scale_logits/k1_elementwise", "-DNOTHING"),
    (
        "rms_norm/k1_block_a_row",
        "-DAQLM_WIDTH=4096 -DAQLM_VECTOR=4 -DAQLM_THREADS=1024 -DAQLM_DELTA=1 -DAQLM_BIAS=0",
    ),
    (
        "rms_norm/k1_block_a_row",
        "-DAQLM_WIDTH=33 -DAQLM_VECTOR=1 -DAQLM_THREADS=64 -DAQLM_DELTA=1 -DAQLM_BIAS=1",
    ),
    ("rope/k1_pairs", "-DAQLM_HEAD=128 -DAQLM_PADDED=128 -DAQLM_BIAS=1"),
    (
        "rope/k1_pairs",
        "-DAQLM_HEAD=96 -DAQLM_PADDED=96 -DAQLM_BIAS=1 -DAQLM_ROTATED=0",
    ),
    (
        "rope/k1_pairs",
        "-DAQLM_HEAD=96 -DAQLM_PADDED=96 -DAQLM_BIAS=0 -DAQLM_ROTATED=72",
    ),
    ("attention/k1_warp_a_query", "-DAQLM_HEAD=128 -DAQLM_PADDED=128"),
    (
        "attention/k1_warp_a_query",
        "-DAQLM_HEAD=256 -DAQLM_PADDED=256 -DAQLM_SCORES=1",
    ),
    (
        "attention_step/k1_split_context",
        "-DAQLM_HEAD=128 -DAQLM_LANES=16 -DAQLM_QUERIES=1 -DAQLM_SPLITS=8 -DAQLM_BIAS=0",
    ),
    (
        "attention_step/k1_split_context",
        "-DAQLM_HEAD=128 -DAQLM_LANES=16 -DAQLM_QUERIES=4 -DAQLM_SPLITS=1 -DAQLM_BIAS=1",
    ),
    (
        "attention_step/k1_split_context",
        "-DAQLM_HEAD=256 -DAQLM_LANES=32 -DAQLM_QUERIES=2 -DAQLM_SPLITS=8 -DAQLM_BIAS=0 -DAQLM_SCORES=1",
    ),
    (
        "attention_step/k1_split_context",
        "-DAQLM_HEAD=128 -DAQLM_LANES=16 -DAQLM_QUERIES=4 -DAQLM_SPLITS=1 -DAQLM_BIAS=1 -DAQLM_ROTATED=0",
    ),
    (
        "attention_step/k1_split_context",
        "-DAQLM_HEAD=96 -DAQLM_LANES=16 -DAQLM_QUERIES=1 -DAQLM_SPLITS=1 -DAQLM_BIAS=0 -DAQLM_ROTATED=72 -DAQLM_SCORES=1",
    ),
    ("swiglu/k1_elementwise", "-DAQLM_BIAS=1"),
    ("swiglu/k1_elementwise", "-DAQLM_BIAS=0 -DAQLM_GELU=1"),
    ("dense/k1_warp_a_row", "-DAQLM_VECTOR=8 -DAQLM_WIDE=1"),
    ("dense/k1_warp_a_row", "-DAQLM_VECTOR=1 -DAQLM_WIDE=0"),
    ("argmax/k1_one_block", "-DNOTHING"),
    ("stream_read/k1_tiles", "-DAQLM_LOADS=8"),
    ("stream_copy/k1_tiles", "-DAQLM_LOADS=8"),
    ("embed_rows/k1_elementwise", "-DNOTHING"),
    ("norm_rows/k1_warp_a_row", "-DNOTHING"),
    ("norm_back/k1_warp_a_row", "-DNOTHING"),
    ("column_sums/k1_chunks", "-DAQLM_NORM=0"),
    ("column_sums/k1_chunks", "-DAQLM_NORM=1"),
    ("add_parts/k1_elementwise", "-DAQLM_WIDE=0"),
    ("add_parts/k1_elementwise", "-DAQLM_WIDE=1"),
    ("rotate_rows/k1_pairs", "-DNOTHING"),
    ("gate_rows/k1_elementwise", "-DAQLM_GELU=0"),
    ("gate_rows/k1_elementwise", "-DAQLM_GELU=1"),
    ("gate_back/k1_elementwise", "-DAQLM_GELU=0"),
    ("gate_back/k1_elementwise", "-DAQLM_GELU=1"),
    ("add_scaled/k1_elementwise", "-DAQLM_WIDE=0"),
    ("add_scaled/k1_elementwise", "-DAQLM_WIDE=1"),
    ("finish_logits/k1_elementwise", "-DNOTHING"),
    ("finish_back/k1_elementwise", "-DNOTHING"),
    ("route_rows/k1_thread_a_row", "-DNOTHING"),
    ("route_back/k1_thread_a_score", "-DNOTHING"),
    ("scale_rows/k1_elementwise", "-DAQLM_ORDERED=0"),
    ("scale_rows/k1_elementwise", "-DAQLM_ORDERED=1"),
    ("gather_sums/k1_elementwise", "-DAQLM_WEIGHTED=0"),
    ("gather_sums/k1_elementwise", "-DAQLM_WEIGHTED=1"),
    ("sigmoid_rows/k1_elementwise", "-DAQLM_BACK=0"),
    ("sigmoid_rows/k1_elementwise", "-DAQLM_BACK=1"),
    ("add_bias/k1_elementwise", "-DNOTHING"),
    ("decode_rows/k1_elementwise", "-DNOTHING"),
    ("codeword_sums/k1_block_a_codeword", "-DNOTHING"),
    ("scale_sums/k1_block_a_group", "-DNOTHING"),
    ("adam_step/k1_elementwise", "-DAQLM_WIDE=1 -DAQLM_LEAN=0"),
    ("adam_step/k1_elementwise", "-DAQLM_WIDE=0 -DAQLM_LEAN=1"),
    ("lamb_moments/k1_tiles", "-DAQLM_WIDE=1 -DAQLM_LEAN=0"),
    ("lamb_moments/k1_tiles", "-DAQLM_WIDE=0 -DAQLM_LEAN=1"),
    ("lamb_ratio/k1_one_block", "-DNOTHING"),
    ("lamb_move/k1_elementwise", "-DAQLM_WIDE=1 -DAQLM_LEAN=0"),
    ("lamb_move/k1_elementwise", "-DAQLM_WIDE=0 -DAQLM_LEAN=1"),
    ("add_rows/k1_elementwise", "-DNOTHING"),
    ("code_norms/k1_thread_a_group", "-DNOTHING"),
    ("select_count/k1_tiles", "-DNOTHING"),
    ("select_digit/k1_one_block", "-DNOTHING"),
    ("select_tiles/k1_tiles", "-DNOTHING"),
    ("select_gather/k1_tiles", "-DAQLM_KEYS=0"),
    ("select_gather/k1_tiles", "-DAQLM_KEYS=1"),
    ("code_search/k1_buckets", "-DAQLM_GO=1 -DAQLM_GI=8 -DAQLM_PLACE=0"),
    ("code_search/k1_buckets", "-DAQLM_GO=1 -DAQLM_GI=8 -DAQLM_PLACE=1"),
    (
        "code_search/k1_buckets",
        "-DAQLM_GO=1 -DAQLM_GI=16 -DAQLM_PLACE=1",
    ),
    ("code_search/k1_buckets", "-DAQLM_GO=1 -DAQLM_GI=4 -DAQLM_PLACE=0"),
    ("trust_changes/k1_thread_a_group", "-DNOTHING"),
    ("trust_cut/k1_one_block", "-DNOTHING"),
    ("code_adopt/k1_thread_a_group", "-DAQLM_ORDERED=0"),
    ("code_adopt/k1_thread_a_group", "-DAQLM_ORDERED=1"),
    ("code_decay/k1_elementwise", "-DNOTHING"),
    ("narrow_rows/k1_elementwise", "-DNOTHING"),
    ("round_rows/k1_elementwise", "-DNOTHING"),
    ("bf16_rows/k1_elementwise", "-DAQLM_BACK=0"),
    ("bf16_rows/k1_elementwise", "-DAQLM_BACK=1"),
    ("add_triangle/k1_elementwise", "-DNOTHING"),
    ("row_squares/k1_block_a_row", "-DAQLM_GRADIENT=0"),
    ("row_squares/k1_block_a_row", "-DAQLM_GRADIENT=1"),
    ("row_scan/k1_warp_a_row", "-DNOTHING"),
    ("token_sums/k1_block_a_token", "-DNOTHING"),
    ("compare_rows/k1_block_a_row", "-DNOTHING"),
    ("token_loss/k1_block_a_row", "-DAQLM_GRADIENT=0"),
    ("token_loss/k1_block_a_row", "-DAQLM_GRADIENT=1"),
    ("teacher_loss/k1_block_a_row", "-DAQLM_GRADIENT=0"),
    ("teacher_loss/k1_block_a_row", "-DAQLM_GRADIENT=1"),
    ("top_loss/k1_block_a_row", "-DAQLM_GRADIENT=0"),
    ("top_loss/k1_block_a_row", "-DAQLM_GRADIENT=1"),
    ("attention_rows/k1_tiles", "-DAQLM_HEAD=64 -DAQLM_TILE=64"),
    ("attention_rows/k1_tiles", "-DAQLM_HEAD=128 -DAQLM_TILE=64"),
    ("attention_rows/k2_tensor", "-DAQLM_HEAD=64"),
    ("attention_rows/k2_tensor", "-DAQLM_HEAD=128"),
    ("attention_back_q/k2_tensor", "-DAQLM_HEAD=64"),
    ("attention_back_q/k2_tensor", "-DAQLM_HEAD=128"),
    ("attention_back_kv/k2_tensor", "-DAQLM_HEAD=64"),
    ("attention_back_kv/k2_tensor", "-DAQLM_HEAD=128"),
    (
        "attention_rows/k1_tiles",
        "-DAQLM_HEAD=128 -DAQLM_TILE=64 -DAQLM_CAPPED=1",
    ),
    ("attention_rows/k2_tensor", "-DAQLM_HEAD=128 -DAQLM_CAPPED=1"),
    (
        "attention_back_q/k1_tiles",
        "-DAQLM_HEAD=128 -DAQLM_TILE=32 -DAQLM_CAPPED=1",
    ),
    ("attention_back_q/k2_tensor", "-DAQLM_HEAD=128 -DAQLM_CAPPED=1"),
    (
        "attention_back_kv/k1_tiles",
        "-DAQLM_HEAD=128 -DAQLM_TILE=64 -DAQLM_CAPPED=1",
    ),
    ("attention_back_kv/k2_tensor", "-DAQLM_HEAD=128 -DAQLM_CAPPED=1"),
    ("attention_delta/k1_warp_a_head", "-DNOTHING"),
    ("attention_back_q/k1_tiles", "-DAQLM_HEAD=64 -DAQLM_TILE=64"),
    ("attention_back_q/k1_tiles", "-DAQLM_HEAD=128 -DAQLM_TILE=32"),
    ("attention_back_kv/k1_tiles", "-DAQLM_HEAD=64 -DAQLM_TILE=64"),
    ("attention_back_kv/k1_tiles", "-DAQLM_HEAD=128 -DAQLM_TILE=64"),
    ("layer_score/k1_tiles", "-DAQLM_LEN=8"),
    ("layer_score/k1_tiles", "-DAQLM_LEN=11"),
    ("layer_score/k1_tiles", "-DAQLM_LEN=16"),
    ("layer_forms/k1_thread_a_codeword", "-DAQLM_METRIC=0"),
    ("layer_forms/k1_thread_a_codeword", "-DAQLM_METRIC=1"),
    ("layer_forms/k1_thread_a_codeword", "-DAQLM_METRIC=2"),
    ("layer_count/k1_tiles", "-DAQLM_FIRST=1"),
    ("layer_count/k1_tiles", "-DAQLM_FIRST=0"),
    ("layer_place/k1_tiles", "-DAQLM_FIRST=1"),
    ("layer_place/k1_tiles", "-DAQLM_FIRST=0"),
    ("layer_scan/k1_one_block", "-DNOTHING"),
    ("layer_starts/k1_thread_a_place", "-DNOTHING"),
    (
        "layer_scatter/k1_block_a_codeword",
        "-DAQLM_WIDE=0 -DAQLM_OF_INPUT=0",
    ),
    (
        "layer_scatter/k1_block_a_codeword",
        "-DAQLM_WIDE=1 -DAQLM_OF_INPUT=1",
    ),
    ("layer_means/k1_thread_a_number", "-DNOTHING"),
    (
        "layer_decode/k1_thread_a_weight",
        "-DAQLM_WIDE=0 -DAQLM_BASE=1 -DAQLM_SCALED=1 -DAQLM_NARROW=0",
    ),
    (
        "layer_decode/k1_thread_a_weight",
        "-DAQLM_WIDE=1 -DAQLM_BASE=0 -DAQLM_SCALED=0 -DAQLM_NARROW=1",
    ),
    ("layer_dot/k1_block_a_part", "-DAQLM_WIDE=0"),
    ("layer_dot/k1_block_a_part", "-DAQLM_WIDE=1"),
    ("layer_combine/k1_elementwise", "-DAQLM_WIDE=0"),
    ("layer_combine/k1_elementwise", "-DAQLM_WIDE=1"),
    ("layer_cast/k1_elementwise", "-DAQLM_WIDE=0"),
    ("layer_cast/k1_elementwise", "-DAQLM_WIDE=1"),
    ("layer_permute/k1_thread_a_number", "-DAQLM_WIDE=0 -DAQLM_ROWS=0"),
    ("layer_permute/k1_thread_a_number", "-DAQLM_WIDE=1 -DAQLM_ROWS=1"),
    ("layer_rescale/k1_block_a_group", "-DAQLM_WIDE=0"),
    ("layer_rescale/k1_block_a_group", "-DAQLM_WIDE=1"),
    ("layer_factor/k1_thread_a_block", "-DNOTHING"),
    ("layer_solve/k1_thread_a_row", "-DNOTHING"),
    ("layer_pivot/k1_one_block", "-DNOTHING"),
    ("layer_below/k1_thread_a_row", "-DNOTHING"),
    ("layer_diagonal/k1_thread_a_pivot", "-DNOTHING"),
    ("layer_blocks/k1_thread_a_number", "-DAQLM_WIDE=0"),
    ("layer_blocks/k1_thread_a_number", "-DAQLM_WIDE=1"),
    ("layer_groups/k1_thread_a_weight", "-DNOTHING"),
    ("layer_metric/k1_thread_a_number", "-DNOTHING"),
    ("layer_feedback/k1_panel", "-DAQLM_GO=1 -DAQLM_GI=8"),
    ("layer_feedback/k1_panel", "-DAQLM_GO=1 -DAQLM_GI=4"),
    ("layer_sweep/k1_panel", "-DAQLM_GO=1 -DAQLM_GI=8"),
    ("layer_sweep/k1_panel", "-DAQLM_GO=1 -DAQLM_GI=4"),
    ("layer_trace/k1_thread_a_group", "-DNOTHING"),
    ("layer_adopt/k1_thread_a_number", "-DNOTHING"),
];

/// Machine code for these; the name with an a has wgmma. The last stands for all newer ones: intermediate
/// code of 9.0, which the driver compiles.
const ARCHITECTURES: &[(u32, &str)] = &[
    (80, "arch=compute_80,code=sm_80"),
    (86, "arch=compute_86,code=sm_86"),
    (89, "arch=compute_89,code=sm_89"),
    (90, "arch=compute_90,code=sm_90"),
    (90, "arch=compute_90a,code=sm_90a"),
    (100, "arch=compute_90,code=sm_100"),
];

/// Bytes a thread that a launch of experts may keep in local memory: where k4's registers are used up, the
/// number of the expert and a few addresses move there.
const EXPERT_BYTES: u32 = 24;

/// One compilation: a kernel, its constants, an architecture.
struct Job {
    kernel: &'static Kernel,
    defines: String,
    architecture: &'static str,
}

fn jobs() -> Vec<Job> {
    let mut jobs = Vec::new();
    for (id, defines) in CASES {
        let kernel = aqlm_kernels::kernel(id).unwrap();
        for (compute, architecture) in ARCHITECTURES {
            // A kernel limited to 9.0 needs instructions of 9.0a.
            let plain = kernel.max_compute == Some(90) && !architecture.contains("90a");
            // Splitting a context needs clusters, which exist from 9.0 on.
            let cluster = defines.contains("-DAQLM_SPLITS=8") && *compute < 90;
            // Plain C++ is the same for all generations: the oldest, the one with wgmma, and the newer ones.
            let middle = !["sm_80", "90a", "sm_100"]
                .iter()
                .any(|end| architecture.contains(end));
            if !kernel.runs_on(*compute) || plain || cluster || (middle && plain_cpp(kernel)) {
                continue;
            }
            let mut push = |defines: String| {
                jobs.push(Job {
                    kernel,
                    defines,
                    architecture,
                });
            };
            push((*defines).to_owned());
            // bf16 is compiled once a generation: the format of x makes no difference between its
            // architectures.
            if kernel.bf16 && (*compute == 80 || architecture.contains("90a")) {
                push(format!("{defines} -DAQLM_BF16=1"));
            }
        }
    }
    jobs
}

/// Whether neither the source nor its own headers ask for the architecture or name an instruction.
/// common.cuh, which all kernels share, does both; other kernels compile it for every architecture.
fn plain_cpp(kernel: &Kernel) -> bool {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut left = vec![folder.join(&kernel.file)];
    let mut seen = Vec::new();
    while let Some(path) = left.pop() {
        let text = std::fs::read_to_string(&path).unwrap();
        if ["__CUDA_ARCH__", "asm", "nvcuda"]
            .iter()
            .any(|word| text.contains(word))
        {
            return false;
        }
        let beside = path.parent().unwrap().to_owned();
        for line in text.lines() {
            let Some(name) = line
                .strip_prefix("#include \"")
                .and_then(|rest| rest.strip_suffix('"'))
            else {
                continue;
            };
            let included = beside.join(name);
            if name != "../common.cuh" && !seen.contains(&included) {
                seen.push(included.clone());
                left.push(included);
            }
        }
    }
    true
}

/// The problem with one compilation, if any.
fn complaint(nvcc: &str, job: &Job, output: &Path) -> Option<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(&job.kernel.file);
    let compiled = Command::new(nvcc)
        .args([
            "-std=c++17",
            "-cubin",
            "-Xptxas",
            "-v",
            "-Werror",
            "all-warnings",
            "-o",
        ])
        .arg(output)
        .arg(format!("-gencode={}", job.architecture))
        .args(job.defines.split(' '))
        .arg(source)
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&compiled.stderr);
    let what = format!("{} {} {}", job.kernel.id, job.defines, job.architecture);
    if !compiled.status.success() {
        return Some(format!("{what}:\n{log}"));
    }
    // "24 bytes stack frame, 24 bytes spill stores, 28 bytes spill loads"
    let frame = log
        .split(" bytes stack frame")
        .next()
        .and_then(|before| before.split_whitespace().last())
        .and_then(|bytes| bytes.parse::<u32>().ok());
    match frame {
        None => Some(format!("{what}: nvcc says nothing of a stack frame:\n{log}")),
        Some(bytes) => {
            let codebooks = job
                .defines
                .split(' ')
                .find_map(|define| define.strip_prefix("-DAQLM_M=")?.parse().ok())
                .unwrap_or(1);
            let expert = if job.defines.contains("-DAQLM_EXPERTS") {
                EXPERT_BYTES
            } else {
                0
            };
            let allowed = job.kernel.local_bytes(codebooks).max(expert);
            (bytes > allowed)
                .then(|| format!("{what}: {bytes} bytes of local memory, its description allows {allowed}"))
        }
    }
}

#[test]
fn every_kernel_compiles_for_every_architecture_without_spills() {
    let nvcc = std::env::var("AQLM_NVCC").unwrap_or_else(|_| "nvcc".into());
    if Command::new(&nvcc).arg("--version").output().is_err() {
        println!("waived: no nvcc");
        return;
    }
    for kernel in aqlm_kernels::kernels() {
        assert!(
            CASES.iter().any(|(id, _)| *id == kernel.id),
            "{} is never compiled",
            kernel.id
        );
    }
    let folder = std::env::temp_dir().join(format!("aqlm-nvcc-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (jobs, next, complaints) = (jobs(), AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for worker in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let output = folder.join(format!("{worker}.cubin"));
            let (jobs, next, complaints, nvcc) = (&jobs, &next, &complaints, &nvcc);
            scope.spawn(move || {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(complaint) = complaint(nvcc, job, &output) {
                        complaints.lock().unwrap().push(complaint);
                    }
                }
            });
        }
    });
    std::fs::remove_dir_all(folder).unwrap();
    let complaints = complaints.into_inner().unwrap();
    assert!(complaints.is_empty(), "{}", complaints.join("\n\n"));
    println!("{} compilations", jobs.len());
}
