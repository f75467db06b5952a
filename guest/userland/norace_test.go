//go:build !race

package userland

// every script runs; see race_test.go.
const every = 1
