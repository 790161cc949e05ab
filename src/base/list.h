// SPDX-License-Identifier: Apache-2.0
#pragma once

// List<T, &T::node>: an intrusive doubly linked list. Nothing is allocated and nothing can fail, so
// teardown may use it. The list does not own its members. Analogue: struct list_head.
//
// I1: a ListNode is in at most one list; it leaves before it is destroyed.

#include "base/check.h"
#include "base/types.h"

namespace stagetwo {

class ListNode {
 public:
  constexpr ListNode() = default;
  ListNode(const ListNode&) = delete;
  ListNode& operator=(const ListNode&) = delete;
  ~ListNode() { ST_DCHECK(!linked()); }

  [[nodiscard]] bool linked() const { return next_ != nullptr; }
  // Pre: linked().
  void unlink() {
    ST_DCHECK(linked());
    prev_->next_ = next_;
    next_->prev_ = prev_;
    prev_ = next_ = nullptr;
  }

 private:
  template <typename T, ListNode T::* Member>
  friend class List;
  void link_before(ListNode* where) {
    ST_DCHECK(!linked());
    prev_ = where->prev_;
    next_ = where;
    prev_->next_ = this;
    where->prev_ = this;
  }
  ListNode* prev_ = nullptr;
  ListNode* next_ = nullptr;
};

template <typename T, ListNode T::* Member>
class List {
 public:
  List() { head_.prev_ = head_.next_ = &head_; }
  List(const List&) = delete;
  List& operator=(const List&) = delete;
  ~List() {
    ST_DCHECK(empty());
    head_.prev_ = head_.next_ = nullptr;
  }

  [[nodiscard]] bool empty() const { return head_.next_ == &head_; }
  T* front() { return empty() ? nullptr : owner(head_.next_); }
  T* back() { return empty() ? nullptr : owner(head_.prev_); }
  void push_back(T* item) { (item->*Member).link_before(&head_); }
  void push_front(T* item) { (item->*Member).link_before(head_.next_); }
  // Pre: `where` is in this list.
  void insert_before(T* where, T* item) { (item->*Member).link_before(&(where->*Member)); }
  void remove(T* item) { (item->*Member).unlink(); }
  T* pop_front() {
    T* item = front();
    if (item != nullptr) remove(item);
    return item;
  }
  // The successor, or nullptr at the end.
  T* next(T* item) {
    ListNode* node = (item->*Member).next_;
    return node == &head_ ? nullptr : owner(node);
  }
  // fn(T&) for each; `fn` may remove its own argument.
  template <typename F>
  void for_each(F&& fn) {
    for (ListNode* node = head_.next_; node != &head_;) {
      ListNode* following = node->next_;
      fn(*owner(node));
      node = following;
    }
  }
  [[nodiscard]] size_t count() const {
    size_t n = 0;
    for (const ListNode* node = head_.next_; node != &head_; node = node->next_) ++n;
    return n;
  }

 private:
  // The object whose member `node` is. The offset of a member pointer is measured on an address
  // that is never read.
  static T* owner(ListNode* node) {
    auto* nowhere = reinterpret_cast<T*>(u64{1} << 20);
    const u64 offset = reinterpret_cast<u64>(&(nowhere->*Member)) - reinterpret_cast<u64>(nowhere);
    return reinterpret_cast<T*>(reinterpret_cast<u64>(node) - offset);
  }

  ListNode head_;
};

}  // namespace stagetwo
