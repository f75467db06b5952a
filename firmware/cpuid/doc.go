// Package cpuid decides what CPUID shows to the guest.
//
// It starts from the leaves that KVM supports on this host, keeps those on an
// allow-list, takes away what this machine does not serve, describes one
// socket of single-threaded cores, and adds the Hyper-V leaves of the TLFS
// (section "Feature and Interface Discovery").
//
// Leaves are plain values: the package knows neither KVM nor a processor, so
// every rule can be tested on any machine.
package cpuid
