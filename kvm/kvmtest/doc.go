// Package kvmtest helps tests that need a KVM device: it skips, loudly, where
// there is none, and fails there if the environment demands one.
package kvmtest
