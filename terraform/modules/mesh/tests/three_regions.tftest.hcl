variables {
  domain = "cellpay.example"
  regions = {
    region-a = { cell = "a", cidr = "10.0.0.0/16", zones = ["a1", "a2", "a3"] }
    region-b = { cell = "b", cidr = "10.1.0.0/16", zones = ["b1", "b2", "b3"] }
    region-c = { cell = "c", cidr = "10.2.0.0/16", zones = ["c1", "c2", "c3"] }
  }
}

run "every_pair_of_regions_is_routed" {
  command = apply

  assert {
    condition     = length(output.peerings) == 3
    error_message = "Three regions are three pairs."
  }
  assert {
    condition     = output.regions["region-b"].subnets["b2"] == "10.1.16.0/20"
    error_message = "Each zone has its subnet."
  }
}

run "two_regions_carry_the_load_of_three" {
  command = apply

  variables {
    orders_per_s = 544000
  }
  assert {
    condition     = output.regions["region-a"].node_pools.cells.nodes == 29
    error_message = "272,000 orders/s of 840 us at half load are 457 cores, on nodes of 16."
  }
}

run "two_regions_are_no_mesh" {
  command = plan

  variables {
    regions = {
      region-a = { cell = "a", cidr = "10.0.0.0/16", zones = ["a1", "a2", "a3"] }
      region-b = { cell = "b", cidr = "10.1.0.0/16", zones = ["b1", "b2", "b3"] }
    }
  }
  expect_failures = [var.regions]
}

run "addresses_that_overlap_are_refused" {
  command = plan

  variables {
    regions = {
      region-a = { cell = "a", cidr = "10.0.0.0/16", zones = ["a1", "a2", "a3"] }
      region-b = { cell = "b", cidr = "10.0.128.0/17", zones = ["b1", "b2", "b3"] }
      region-c = { cell = "c", cidr = "10.2.0.0/16", zones = ["c1", "c2", "c3"] }
    }
  }
  expect_failures = [terraform_data.contract]
}

run "a_cell_is_in_one_region" {
  command = plan

  variables {
    regions = {
      region-a = { cell = "a", cidr = "10.0.0.0/16", zones = ["a1", "a2", "a3"] }
      region-b = { cell = "a", cidr = "10.1.0.0/16", zones = ["b1", "b2", "b3"] }
      region-c = { cell = "c", cidr = "10.2.0.0/16", zones = ["c1", "c2", "c3"] }
    }
  }
  expect_failures = [terraform_data.contract]
}
