//go:build !amd64

package emuhost

// tscKHz is unknown: the emulated kernel calibrates by itself.
func tscKHz() uint64 { return 0 }
