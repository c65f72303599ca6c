// Which keys a query attends to.
#pragma once

// Whether a query attends to a key; a window of 0 is none.
__device__ __forceinline__ bool attends(int query, int key, int tokens, int window) {
    return key <= query && query < tokens && (window == 0 || key + window > query);
}

// Whether queries `first_query` on attend to all keys up to `last_key`, and all are there.
__device__ __forceinline__ bool attend_all(int first_query, int last_query, int last_key, int tokens, int window) {
    return window == 0 && last_key <= first_query && last_query < tokens && first_query > 0;
}

// Whether a query attends to one key only. Softmax over one score is one, so neither query nor key has
// influence, and their gradients are zero, not the rounding of a difference.
__device__ __forceinline__ bool sees_one(int query, int window) { return query == 0 || window == 1; }

// The earliest key that a query attends to.
__device__ __forceinline__ int first_seen(int query, int window) {
    return window == 0 || query + 1 < window ? 0 : query + 1 - window;
}
