variables {
  region = "region-a"
  cell   = "a"
  domain = "cellpay.example"
  cidr   = "10.0.0.0/16"
  zones  = ["a1", "a2", "a3"]
}

run "a_region_has_a_node_a_zone_at_least" {
  command = apply

  variables {
    orders_per_s = 1
  }
  assert {
    condition     = alltrue([for pool in output.node_pools : pool.nodes >= 3])
    error_message = "What is spread over three zones needs three nodes."
  }
}

run "two_zones_are_too_few" {
  command = plan

  variables {
    zones = ["a1", "a2"]
  }
  expect_failures = [var.zones]
}

run "addresses_that_policies_do_not_let_through_are_refused" {
  command = plan

  variables {
    cidr = "192.168.0.0/16"
  }
  expect_failures = [var.cidr]
}

run "a_zone_that_is_named_twice_is_refused" {
  command = plan

  variables {
    zones = ["a1", "a2", "a1"]
  }
  expect_failures = [var.zones]
}
