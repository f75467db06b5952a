// Package hv holds the definitions of the Hypervisor Top Level Functional
// Specification: MSR numbers, hypercall codes, status values, message and
// event page layouts, and the codecs for them. It has no logic and no state,
// and imports nothing of this module but guest addresses.
package hv
