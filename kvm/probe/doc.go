// Package probe finds out what a KVM device is worth: whether it opens, what
// it lacks, whether there is hardware under it or an interpreter, and what to
// do about it. The doctor command prints its Report; the choice of a host
// asks CanRunLinux.
//
// It stands on packages kvm and kvm/bare. Its guests are a few bytes long and
// bounded in time. They never execute vmcall or vmmcall: a KVM that
// interprets its guests was seen to patch and retry those for ever.
package probe
