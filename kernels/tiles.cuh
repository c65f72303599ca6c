// Codes in tiles: the layout shared by matmul k2, k3, k4 and decode k2, so that one copy of a matrix serves
// them all.
//
// codes: [tile of TILE_ROWS rows][unit][part][lane] of PART words. A unit is STEPS steps, a step four input
//   groups. Lane 4 g + t has row g, input group t. A lane's bits run over (step, codebook), FIELD bits a
//   code.
#pragma once

#define TILE_ROWS 8
#define STEPS 4                                      // of a unit, each of four input groups
#define VECTORS (AQLM_G / 8)                         // 16-byte vectors in a codeword
#define FIELD (AQLM_B <= 8 ? 8 : 16)                 // bits that a code takes
#define WORDS (AQLM_M * FIELD / 8)                   // 4-byte words of a lane in a unit
#define PART (WORDS % 4 == 0 ? 4 : WORDS % 2 == 0 ? 2 : 1)
#define CODE_MASK ((1u << AQLM_B) - 1u)
// The stride of rows of sums in shared memory is an odd multiple of SUM_PADDING (k2, k4). The two eight-lane
// halves of a store then share no bank.
#define SUM_PADDING 8
