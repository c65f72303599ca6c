pub(super) mod k2_tiles;
