// How many numbers of a head are rotated: all, or AQLM_ROTATED of them where that is given, 0 for none.
// Number i of the first half is rotated with number i + HALF.
#pragma once

#ifdef AQLM_ROTATED
#define TURNED AQLM_ROTATED
#else
#define TURNED AQLM_HEAD
#endif
#define HALF (TURNED / 2)
